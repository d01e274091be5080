"""What Qwen's families share: images and videos of any size, and M-RoPE positions that stay.

Kept tokens keep the M-RoPE positions of the unpruned prompt, and decoding goes on after it. An int
``retention`` counts tokens per image (per frame of a video); an image that has fewer keeps them
all. Videos: the tokens of each frame are pruned as an image's are, which goes beyond the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hiprune.models.base import Transformers
from hiprune.models.prompt import ImageSpan
from hiprune.models.qwen_tower import MergedTower, maps
from hiprune.models.transformers_version import require_transformers
from hiprune.models.views import flat_indices
from hiprune.models.visuals import Encoded, Kind
from torch import Tensor

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle


class Qwen(Transformers):
    """
    Attributes:
        frames_apart: is each frame of a video a run of placeholders of its own in a prompt? Else
            a video's frames are one run.
    """

    kinds = (
        Kind(1, "image", "pixel_values", "image_grid_thw", "image_token_id"),
        Kind(2, "video", "pixel_values_videos", "video_grid_thw", "video_token_id"),
    )
    unused = (*Transformers.unused, "second_per_grid_ts")
    keeps_positions = takes_both = True
    frames_apart = False

    def size(self, model: Any) -> dict[str, int]:
        return {"layers": len(model.model.visual.blocks)}

    def tower(self, model: Any, config: HiPruneConfig) -> MergedTower:
        return MergedTower(model.model.visual, config)

    def patch_tower(self, model: Any, handle: PruneHandle) -> None:
        handle.tower.patch(handle, model.model.visual)

    def visuals(
        self, model: Any, tower: MergedTower, kind: Kind, pixels: Any, sizes: Any
    ) -> tuple[list[ImageSpan], Callable[[dict], Encoded]]:
        if sizes is None:
            raise HiPruneError(f"{kind.sizes}=None with {kind.pixels}; expected (n, 3)")
        visual = model.model.visual
        frames = tower.frames(visual, sizes)
        kept = [count * span.kept for count, span in frames]
        if self.frames_apart:
            spans = [span for count, span in frames for _ in range(count)]
        else:
            spans = [
                ImageSpan(count * span.placeholders, count * span.kept) for count, span in frames
            ]

        def encode(wanted: dict) -> Encoded:
            with tower.passing(visual, sizes, pixels.device, bool(wanted)) as run:
                features = getattr(model.model, f"get_{kind.name}_features")
                output = features(pixels, sizes, return_dict=True, **run.windows, **wanted)
            found = torch.cat(output.pooler_output)[flat_indices(run.selections)]  # (sum of N', C)
            output.pooler_output = found.split(kept)
            if run.planes:
                output.deepstack_features = [plane.split(kept) for plane in run.planes]
            places = [
                each.indices.flatten() if self.frames_apart else flat_indices([each])
                for each in run.selections
            ]
            features = list(output.pooler_output)
            return Encoded(features, run.selections, places, output, run.planes)

        return spans, encode

    def positions(
        self,
        model: Any,
        arguments: dict[str, Any],
        ids: Tensor,
        mask: Tensor | None,
        generating: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        types, inner = arguments.get("mm_token_type_ids"), model.model
        if types is None:  # the model then counts all tokens in one row
            row = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            if generating:
                inner.rope_deltas = ids.new_zeros(len(ids), 1)
                if mask is not None:
                    row = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
            return row.expand(3, *ids.shape), None
        found, ahead = inner.get_rope_index(
            ids,
            mm_token_type_ids=types,
            image_grid_thw=arguments.get("image_grid_thw"),
            video_grid_thw=arguments.get("video_grid_thw"),
            second_per_grid_ts=arguments.get("second_per_grid_ts"),
            attention_mask=mask,
        )
        inner.rope_deltas = ahead  # as the unpatched model notes it
        return found, ahead

    # Of the registry of encoders: see hiprune.figures.maps.
    def extra_tokens(self, visual: Any) -> int:
        """None: the tower has image tokens alone."""
        return 0

    def run(
        self, visual: Any, pixel_values: Tensor, *, grid_thw: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        require_transformers()
        return maps(visual, pixel_values, grid_thw, **inputs)
