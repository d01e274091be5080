"""Work: what a part of a model multiplies; and what a counter of a whole model has to tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Work:
    """Multiply-adds: a multiplication and the addition of its product are one, as fvcore counts.

    Biases, norms, activations, softmax and rotations multiply no matrices and are left out.

    Attributes:
        weights: of activations with weights: linear layers, lm_head, patch convolutions.
        attention: of activations with each other: QK^T and the attention times V. In full: of a
            causal mask the half that is thrown away, too.
    """

    weights: int = 0
    attention: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.weights + other.weights, self.attention + other.attention)

    def __mul__(self, times: int) -> Work:
        return Work(self.weights * times, self.attention * times)

    @property
    def total(self) -> int:
        return self.weights + self.attention


@dataclass(frozen=True)
class Picture:
    """One image as the vision tower gets it.

    Attributes:
        views: 1; LLaVA-NeXT: the base view and those of its grid.
        rows, columns: of patches, in a view.
        merge: sides of a square of patches that become one token.
    """

    views: int
    rows: int
    columns: int
    merge: int = 1

    @property
    def tokens(self) -> int:
        """N: what the language model gets of the image, unpruned."""
        return self.views * (self.rows // self.merge) * (self.columns // self.merge)


class Counts(Protocol):
    """The parts of one model on one picture; ``kept`` is N', over all views."""

    def tower(self) -> Work:
        """The whole vision tower, without projector or merger."""

    def pruned_tower(self, kept: int) -> Work:
        """The tower up to the output layer, which goes on for the kept tokens alone.

        There, queries, keys and values are made of all tokens (the scores need all queries); the
        attention itself, its output projection and the MLP see the kept tokens' queries.
        """

    def scoring_pass(self) -> Work:
        """QK^T of the two scored layers, once."""

    def projector(self, tokens: int) -> Work:
        """The projector (Qwen2.5-VL: the merger) on so many tokens of the language model."""

    def layers(self, positions: int) -> Work:
        """All decoder layers on a prompt of so many positions."""

    def lm_head(self, positions: int) -> Work:
        """The logits of so many positions."""
