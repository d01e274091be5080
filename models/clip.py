"""What the LLaVA adapters share: a CLIP tower run up to the output layer, and the choice of tokens.

An image is one view (LLaVA-1.5) or several (LLaVA-NeXT: a base view, then a grid of them). Both
packages that the adapters serve build their towers of the same modules, `q_proj`, `k_proj` and all;
only how a layer is called differs between versions of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hiprune.capture import AttentionCapture, ScoredLayer
from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.scores import received_attention
from hiprune.selector import TokenSelection, select_tokens


class ClipTower:
    """The vision tower of one patched model.

    Args:
        vision: transformers' CLIPVisionTransformer.
        select_layer: index into the tower's hidden states that the features come from; hidden
            state k of a tower with L layers is the output of layer k, k = -1 that of layer L.
        config: with the family's defaults filled in.
        max_views: the most views of an image, the base view included.
        run_layer: layer, (B, 1+N, C_v) -> (B, 1+N, C_v).

    Raises:
        HiPruneError: a layer or a budget that this tower cannot have.
    """

    def __init__(
        self,
        vision: Any,
        select_layer: int,
        config: HiPruneConfig,
        max_views: int,
        run_layer: Callable[[Any, Tensor], Tensor],
    ) -> None:
        self.vision = vision
        self.config = config
        self.run_layer = run_layer
        self.layers = vision.encoder.layers
        self.output_layer = select_layer % (len(self.layers) + 1)
        self.columns = vision.config.image_size // vision.config.patch_size  # c; N = c * c
        self._check(select_layer, max_views)

    def _check(self, select_layer: int, max_views: int) -> None:
        config, n_layers = self.config, len(self.layers)
        if self.output_layer == 0:
            raise HiPruneError(
                f"vision select layer {select_layer}: the features are the embeddings; accepted "
                "is the output of a layer"
            )
        if config.object_layer > n_layers:
            raise HiPruneError(
                f"object_layer={config.object_layer}: accepted is 1 to {n_layers}, the layers of "
                "this model's vision tower"
            )
        if not isinstance(config.retention, int):
            return
        tokens = max_views * self.columns**2
        if not max_views <= config.retention <= tokens:
            what = f"{max_views} views of {self.columns**2}" if max_views > 1 else "one view"
            raise HiPruneError(
                f"retention={config.retention}: accepted is {max_views} to {tokens} tokens per "
                f"image ({what} in this model)"
            )

    def hook(self) -> AttentionCapture:
        """Put the hooks on the two scored layers; the capture's remove() takes them off."""
        numbers = {self.config.object_layer, self.output_layer}
        self.capture = AttentionCapture({n: _scored(self.layers[n - 1].self_attn) for n in numbers})
        return self.capture

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) -> features (B, N, C_v), object and output scores (B, N); CLS dropped."""
        with self.capture.recording():
            hidden = self.vision.pre_layrnorm(self.vision.embeddings(pixels))  # (B, 1+N, C_v)
            # An object layer beyond the output layer is legal in the paper's ablation; then, and
            # only then, layers after the output layer run.
            for number in range(1, max(self.output_layer, self.config.object_layer) + 1):
                hidden = self.run_layer(self.layers[number - 1], hidden)
                if number == self.output_layer:
                    features = hidden
            scores = self.capture.scores()
        # The layers may lie on several devices.
        scores = {number: score.to(features.device) for number, score in scores.items()}
        object_scores, output_scores = scores[self.config.object_layer], scores[self.output_layer]
        return features[:, 1:], object_scores[:, 1:], output_scores[:, 1:]

    def choose(
        self,
        features: Tensor,
        object_scores: Tensor,
        output_scores: Tensor,
        views: Sequence[int],
        grid_columns: Callable[[int, int], int | None],
    ) -> tuple[list[TokenSelection], list[Tensor]]:
        """The kept tokens of images with so many views each.

        Args:
            features: (sum of V, N, C_v); the scores (sum of V, N).
            views: V of each image.
            grid_columns: number of the image and V -> grid views in a row, for the grid's tokens
                to come in the raster order of the merged picture; None: view by view.

        Returns:
            One selection an image (its rows are the views) and its features, (N', C_v).
        """
        if all(count == 1 for count in views):
            selection = self._select(object_scores, output_scores, 1)
            selections = [selection[i : i + 1] for i in range(len(views))]
            return selections, list(selection.gather(features))
        selections, kept = [], []
        parts = (tensor.split(list(views)) for tensor in (features, object_scores, output_scores))
        for index, (image, object_score, output_score) in enumerate(zip(*parts, strict=True)):
            selection = self._select(object_score, output_score, len(image))
            image = selection.gather(image).flatten(0, 1)  # (V, N, C_v) -> (N', C_v)
            columns = grid_columns(index, len(selection.indices))
            if columns is not None:
                image = image[_merged_order(selection, self.columns, columns)]
            selections.append(selection)
            kept.append(image)
        return selections, kept

    def _select(self, object_scores: Tensor, output_scores: Tensor, views: int) -> TokenSelection:
        """(V, N) scores of one image's views, or of B images of one view each."""
        budget = self.config.budget(views * self.columns**2)
        if budget < views:
            raise HiPruneError(
                f"retention={self.config.retention}: leaves no token for each of the {views} views "
                f"of an image; accepted is at least {views} tokens"
            )
        return select_tokens(
            object_scores,
            output_scores,
            columns=self.columns,
            budget=budget // views,
            alpha=self.config.alpha,
        )


def _merged_order(selection: TokenSelection, side: int, columns: int) -> Tensor:
    """(N',) from view by view to: the base view, then the grid of views as one picture."""
    views, per_view = selection.indices.shape
    base = torch.arange(per_view, device=selection.indices.device)
    row, column = selection.indices[1:] // side, selection.indices[1:] % side  # (V-1, N'/V)
    view = torch.arange(views - 1, device=row.device).unsqueeze(1)
    row = row + view // columns * side
    column = column + view % columns * side
    raster = row * (columns * side) + column  # place in the merged picture
    return torch.cat([base, per_view + raster.flatten().argsort()])


def max_views(pinpoints: Sequence[Sequence[int]], image_size: int) -> int:
    """The most views under anyres: the largest grid of [width, height], plus the base view."""
    return 1 + max((width // image_size) * (height // image_size) for width, height in pinpoints)


def _scored(attention: Any) -> ScoredLayer:
    """A CLIPAttention: queries and keys are its q_proj and k_proj, cut into heads."""

    def score(query: Tensor, key: Tensor, **_: Any) -> Tensor:
        query, key = (x.unflatten(-1, (attention.num_heads, -1)) for x in (query, key))
        query, key = query.transpose(1, 2), key.transpose(1, 2)  # (B, H, 1+N, D)
        return received_attention(query, key, attention.scale)

    return ScoredLayer(attention, (attention.q_proj, attention.k_proj), score)
