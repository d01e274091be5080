"""What the LLaVA adapters share: a CLIP tower run up to the output layer, and the choice of tokens.

An image is one view (LLaVA-1.5) or several (LLaVA-NeXT: a base view, then a grid of them). Both
packages that the adapters serve build their towers of the same modules, `q_proj`, `k_proj` and all;
only how a layer is called differs between versions of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from hiprune.models.clip_layer import ScoredHalf, finish_half, gather, heads, score_half
from hiprune.models.views import merged_order
from torch import Tensor

from hiprune.capture import AttentionCapture, Recording, ScoredLayer, observed
from hiprune.config import Family, HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.methods import Images, method_of
from hiprune.scores import received_attention
from hiprune.selection import TokenSelection

FAMILIES = (
    Family("llava", "HIPRUNE_RETENTION", 192, 576, object_layer=9, encoder_layers=24),
    Family("llava_next", "HIPRUNE_RETENTION", 640, 2880, object_layer=9, encoder_layers=24),
)


def tower_size(vision: Any, max_views: int) -> dict[str, int]:
    """What defaults depend on: the tower's layers, and the most tokens of an image."""
    side = vision.config.image_size // vision.config.patch_size
    return {"layers": len(vision.encoder.layers), "tokens": max_views * side**2}


class ClipTower:
    """The vision tower of one patched model.

    Args:
        vision: transformers' CLIPVisionTransformer.
        select_layer: index into the tower's hidden states that the features come from; hidden
            state k of a tower with L layers is the output of layer k, k = -1 that of layer L.
        config: with the family's defaults filled in.
        max_views: the most views of an image, the base view included.
        run_layer: layer, (B, 1+N, C_v) -> (B, 1+N, C_v), as the package runs it.

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
        self.dropping = False  # within an encode that drops tokens
        self.choose = method_of(config)
        # Whose attention counts: every token's, or that of CLS, the first, alone.
        self.scored_queries = slice(0, 1) if config.uses_cls else slice(None)
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

    def hook(self) -> list:
        """Hook the scored layers' attention; what comes back is for the handle's ``placed``."""
        numbers = sorted({self.config.object_layer, self.output_layer})
        self.capture = AttentionCapture()
        return self.capture.attach(
            {n: _scored(self.layers[n - 1].self_attn, self.scored_queries) for n in numbers}
        )

    def kept_tokens(self, views: int) -> int:
        """N' of an image with so many views; known before the tower has run.

        Raises:
            HiPruneError: less than a token a view.
        """
        budget = self.config.budget(views * self.columns**2)
        if budget < views:
            raise HiPruneError(
                f"retention={self.config.retention}: leaves no token for each of the {views} views "
                f"of an image; accepted is at least {views} tokens"
            )
        return budget // views * views

    def looked_at(self, pixels: Tensor) -> bool:
        """Would anybody see that the tower does not run as a whole: a hook, or a gradient?"""
        vision, rest = self.vision, self.layers[self.output_layer - 1 :]
        if any(observed(part, False) for part in (vision, vision.encoder, vision.post_layernorm)):
            return True
        if any(observed(layer) for layer in rest):
            return True
        return torch.is_grad_enabled() and (
            pixels.requires_grad or any(weight.requires_grad for weight in vision.parameters())
        )

    def encode(
        self,
        pixels: Tensor,
        views: Sequence[int],
        grid_columns: Callable[[int, int], int | None],
        dtype: torch.dtype | None = None,
        run: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[list[TokenSelection], list[Tensor]]:
        """Run the tower up to the output layer, and the last of it for the kept tokens alone.

        Or the whole tower, as the model does, where ``run`` is given.

        Args:
            pixels: (sum of V, 3, H, W).
            views: V of each image.
            grid_columns: number of the image and V -> grid views in a row, for the grid's tokens
                to come in the raster order of the merged picture; None: view by view.
            dtype: of the features; the tower's unless given.
            run: the tower as a module: pixels -> the output layer's (sum of V, 1+N, C_v).

        Returns:
            One selection an image (its rows are the views) and its features, (N', C_v).
        """
        with torch.set_grad_enabled(run is not None and torch.is_grad_enabled()):
            return self._encode(pixels, views, grid_columns, dtype, run)

    def _encode(
        self,
        pixels: Tensor,
        views: Sequence[int],
        grid_columns: Callable[[int, int], int | None],
        dtype: torch.dtype | None,
        run: Callable[[Tensor], Tensor] | None,
    ) -> tuple[list[TokenSelection], list[Tensor]]:
        tokens = self.columns**2
        self.dropping = any(self.kept_tokens(count) < count * tokens for count in views)
        try:
            with self.capture.recording() as recording:
                if run is None:
                    half = self._run(pixels, recording)
                    hidden, finish = half.hidden, partial(self._finish, half)
                else:
                    hidden, finish = run(pixels), None
                scores = recording.found()
        finally:
            self.dropping = False
        # CLS is dropped, and the layers may lie on several devices.
        object_scores, output_scores = (
            scores[number].to(hidden.device)[:, 1:]  # (sum of V, N)
            for number in (self.config.object_layer, self.output_layer)
        )

        def keep(rows: slice, count: int) -> tuple[TokenSelection, Tensor]:
            chosen = self._select(object_scores[rows], output_scores[rows], count)
            if finish is None:
                features = gather(hidden[rows], 1 + chosen.indices)
            else:
                features = finish(rows, chosen)  # (V, N'/V, C_v)
            return chosen, features.to(dtype or features.dtype)

        if all(count == 1 for count in views):  # one budget: all images at once
            chosen, features = keep(slice(None), 1)
            return [chosen[i : i + 1] for i in range(len(views))], list(features)
        selections, kept, start = [], [], 0
        for index, count in enumerate(views):
            chosen, features = keep(slice(start, start := start + count), count)
            features = features.flatten(0, 1)  # (V, N'/V, C_v) -> (N', C_v)
            columns = grid_columns(index, count)
            if columns is not None:
                features = features[merged_order(chosen, self.columns, columns)]
            selections.append(chosen)
            kept.append(features)
        return selections, kept

    def _run(self, pixels: Tensor, recording: Recording) -> ScoredHalf:
        """All layers before the output layer and that one's first half; both layers' scores."""
        output = self.layers[self.output_layer - 1]
        hidden = self.vision.pre_layrnorm(self.vision.embeddings(pixels))  # (B, 1+N, C_v)
        for layer in self.layers[: self.output_layer - 1]:
            hidden = self.run_layer(layer, hidden)
        half = score_half(output, hidden, self.scored_queries)
        if self.config.object_layer <= self.output_layer:
            recording.add(self.output_layer, half.score)
            return half
        # An object layer beyond the output layer is legal in the paper's ablation; then, and only
        # then, layers after the output layer run, and that one as a whole.
        for layer in self.layers[self.output_layer - 1 : self.config.object_layer]:
            hidden = self.run_layer(layer, hidden)
        return half

    def _finish(self, half: ScoredHalf, rows: slice, chosen: TokenSelection) -> Tensor:
        """The output layer's features of the kept tokens, (B', N', C_v)."""
        layer = self.layers[self.output_layer - 1]
        if chosen.indices.shape[1] == self.columns**2:
            # Nothing is dropped: the layer as it is, so that nothing changes by a rounding either.
            return self.run_layer(layer, half.hidden[rows])[:, 1:]
        return finish_half(layer, half, rows, 1 + chosen.indices)

    def _select(self, object_scores: Tensor, output_scores: Tensor, views: int) -> TokenSelection:
        """(V, N) scores of one image's views, or of B images of one view each."""
        budget = self.kept_tokens(views) // views
        return self.choose(
            Images.like(output_scores, self.columns, budget),
            object_scores=object_scores,
            output_scores=output_scores,
            # Where a method needs it, these are scores of CLS's attention: the mean of its heads.
            cls_attention=output_scores.unsqueeze(1),  # (V, 1, N)
        )


def _scored(attention: Any, scored_queries: slice) -> ScoredLayer:
    """A CLIPAttention: queries and keys are its q_proj and k_proj, cut into heads."""
    return ScoredLayer(attention, ("q_proj", "k_proj"), partial(_score, scored_queries))


def _score(scored_queries: slice, attention: Any, query: Tensor, key: Tensor, **_: Any) -> Tensor:
    query, key = heads(attention, query)[:, :, scored_queries], heads(attention, key)
    return received_attention(query, key, attention.scale)  # (B, 1+N)
