"""t-SNE with the paper's settings, as far as the number of points allows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paths import TINY
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 42  # the paper's
LAYERS_PERPLEXITY, LAYERS = 20, 24  # the paper's, of CLIP-L's 24 layers
TOKENS_PERPLEXITY = 30  # the paper's, of 576 tokens


def of_layers(layers: int) -> float:
    """Perplexity for so many layers: the paper's 20, or the same share of fewer layers."""
    return min(LAYERS_PERPLEXITY, layers * LAYERS_PERPLEXITY / LAYERS)


def in_two_dimensions(points: Tensor, perplexity: float) -> NDArray:
    """(n, C) -> (n, 2)."""
    from sklearn.manifold import TSNE

    found = TSNE(perplexity=perplexity, random_state=SEED, max_iter=250 if TINY else 1000)
    return found.fit_transform(points.double().numpy())
