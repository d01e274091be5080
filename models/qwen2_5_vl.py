"""transformers' Qwen2.5-VL, 5.17 to 5.x.

Kept tokens keep the M-RoPE positions of the unpruned prompt, and decoding goes on after it. An int
``retention`` counts tokens per image (per frame of a video); an image that has fewer keeps them
all. An object layer with windowed attention is scored within its windows, as the model attends.
Videos: the tokens of each frame are pruned as an image's are, which goes beyond the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hiprune.models.base import Encoded, Kind, Transformers, register
from hiprune.models.prompt import ImageSpan
from hiprune.models.qwen2_5_vl_tower import WindowedTower, flat_indices, maps
from hiprune.models.transformers_version import require_transformers
from torch import Tensor

from hiprune.config import Family, HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle


@register(
    "transformers",
    "Qwen2_5_VLForConditionalGeneration",
    families=(Family("qwen2_5_vl", "HIPRUNE_QWEN_RETENTION", 0.334, 1.0, 16, encoder_layers=32),),
    encoders=("qwen2_5_vl_vision",),
)
class Qwen25VL(Transformers):
    kinds = (
        Kind(1, "image", "pixel_values", "image_grid_thw", "image_token_id"),
        Kind(2, "video", "pixel_values_videos", "video_grid_thw", "video_token_id"),
    )
    unused = (*Transformers.unused, "second_per_grid_ts")
    keeps_positions = takes_both = True

    def family(self, model: Any) -> str:
        return "qwen2_5_vl"

    def size(self, model: Any) -> dict[str, int]:
        return {"layers": len(model.model.visual.blocks)}

    def tower(self, model: Any, config: HiPruneConfig) -> WindowedTower:
        return WindowedTower(model.model.visual, config)

    def patch_tower(self, model: Any, handle: PruneHandle) -> None:
        handle.tower.patch(handle, model.model.visual)

    def visuals(
        self, model: Any, tower: WindowedTower, kind: Kind, pixels: Any, sizes: Any
    ) -> tuple[list[ImageSpan], Callable[[dict], Encoded]]:
        if sizes is None:
            raise HiPruneError(f"{kind.sizes}=None with {kind.pixels}; expected (n, 3)")
        visual = model.model.visual
        spans = tower.spans(visual, sizes)

        def encode(wanted: dict) -> Encoded:
            with tower.passing(visual, sizes, pixels.device, bool(wanted)) as run:
                features = getattr(model.model, f"get_{kind.name}_features")
                output = features(pixels, sizes, return_dict=True, **run.windows, **wanted)
            kept = torch.cat(output.pooler_output)[flat_indices(run.selections)]  # (sum of N', C)
            output.pooler_output = kept.split([span.kept for span in spans])
            places = [flat_indices([selection]) for selection in run.selections]
            return Encoded(list(output.pooler_output), run.selections, places, output)

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
