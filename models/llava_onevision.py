"""transformers' LLaVA-OneVision (llava-hf/*), 5.17 to 5.x: a SigLIP tower, which has no CLS.

An image that is alone in its prompt is cut into views, of which, as of LLaVA-NeXT's, kept tokens of
the base view come first, then those of the grid in its raster order; un-padding, down-scaling and
newline tokens are not used. Of several images in a prompt each is one view. The model scales what
it cuts into more than 10 views down to as many tokens: such an image's budget is a share of these.

Videos, which the paper does not prune: the model pools a frame's 27 x 27 patches to 14 x 14 tokens,
of which each frame keeps N'. A token's score is that of its patches, weighted as the pooling weighs
them, and the projector sees these patches alone. The newline token after a video stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from hiprune.models.base import Transformers
from hiprune.models.clip import ClipTower
from hiprune.models.clip_layer import patch_columns
from hiprune.models.clip_run import run_tower
from hiprune.models.llava_hf import (
    LlavaHf,
    check_views,
    grids_of,
    placeholders_of,
    places_of,
    views_of,
)
from hiprune.models.prompt import ImageSpan
from hiprune.models.registry import register
from hiprune.models.tokens import Tokens
from hiprune.models.views import check_budget, flat_indices, max_views
from hiprune.models.visuals import Encoded, Kind
from torch import Tensor

from hiprune.config import Family, HiPruneConfig
from hiprune.errors import HiPruneError

# 10 views of 729 tokens. l is as deep as the paper's of CLIP; the paper has no numbers of
# LLaVA-OneVision.
_FAMILY = Family(
    "llava_onevision", "HIPRUNE_RETENTION", 0.334, 10 * 729, object_layer=10, encoder_layers=26
)


@register("transformers", "LlavaOnevisionForConditionalGeneration", families=(_FAMILY,))
class LlavaOnevision(LlavaHf):
    kinds = (
        Kind(1, "image", "pixel_values", "image_sizes", "image_token_id"),
        Kind(2, "video", "pixel_values_videos", "", "video_token_id"),
    )
    unused = (*Transformers.unused, "batch_num_images", "image_sizes_videos")

    def family(self, model: Any) -> str:
        return "llava_onevision"

    def size(self, model: Any) -> dict[str, int]:
        return {"layers": model.model.vision_tower.config.num_hidden_layers}

    def tower(self, model: Any, config: HiPruneConfig) -> ClipTower:
        own, vision = model.config, model.model.vision_tower
        if not isinstance(own.vision_feature_layer, int):
            raise HiPruneError(
                f"vision_feature_layer={own.vision_feature_layer!r}: expected one layer, an int"
            )
        if own.vision_feature_select_strategy != "full" or vision.config.model_type != (
            "siglip_vision_model"
        ):
            raise HiPruneError(
                f"vision_feature_select_strategy={own.vision_feature_select_strategy!r} of a "
                f"{vision.config.model_type}: expected 'full' of a siglip_vision_model"
            )
        tokens = Tokens(patch_columns(vision) ** 2, extra=0)
        grid = re.fullmatch(r"anyres_max_(\d+)", own.vision_aspect_ratio)
        if grid is None:
            raise HiPruneError(
                f"vision_aspect_ratio={own.vision_aspect_ratio!r}: expected 'anyres_max_N', N views"
            )
        most = 1 + int(grid[1])
        tower = ClipTower(vision, own.vision_feature_layer, config, None, tokens, most)
        cut = max_views(own.image_grid_pinpoints, vision.config.image_size)
        check_budget(config.retention, min(most, cut), tokens.count)
        tower.pooled = _pooled(model)
        return tower

    def check(self, model: Any, arguments: dict[str, Any]) -> None:
        super().check(model, arguments)
        own = model.config.vision_aspect_ratio
        if arguments.pop("vision_aspect_ratio", None) not in (None, own):
            raise HiPruneError(f"vision_aspect_ratio: expected the model's own, {own!r}")

    def sizes(self, model: Any, kind: Kind, arguments: dict[str, Any], ids: Tensor) -> Any:
        return arguments.get("image_sizes"), arguments.get("batch_num_images")

    def visuals(
        self, model: Any, tower: ClipTower, kind: Kind, pixels: Any, sizes: Any
    ) -> tuple[list[ImageSpan], Callable[[dict], Encoded]]:
        """
        Args:
            pixels: of images (images, most V, 3, H, W), or the views one after the other, (sum of
                V, 3, H, W); of videos (videos, frames, 3, H, W).
            sizes: of images (images, 2), height and width of each; or a tuple of these and of how
                many images each prompt has: None, one.
        """
        ranks = (4, 5) if kind.name == "image" else (5,)
        if not isinstance(pixels, Tensor) or pixels.ndim not in ranks:
            shape = tuple(getattr(pixels, "shape", ())) or type(pixels).__name__
            raise HiPruneError(f"{kind.pixels}: {shape}; expected a tensor (..., 3, H, W)")
        if kind.name == "video":
            return _videos(model, tower, pixels)
        pair = isinstance(sizes, tuple) and len(sizes) == 2
        pair = pair and (sizes[0] is None or torch.as_tensor(sizes[0]).ndim == 2)
        return _images(model, tower, pixels, *(sizes if pair else (sizes, None)))


def _images(
    model: Any, tower: ClipTower, pixels: Tensor, sizes: Any, counts: Any
) -> tuple[list[ImageSpan], Callable[[dict], Encoded]]:
    if sizes is None:
        raise HiPruneError("image_sizes=None: expected (height, width) of every image")
    counts = [1] * len(sizes) if counts is None else [int(count) for count in counts]
    cut = [count == 1 for count in counts for _ in range(count)]  # an image that is alone
    if len(cut) != len(sizes):
        raise HiPruneError(
            f"batch_num_images={counts}: {len(cut)} images; expected {len(sizes)}, as image_sizes"
        )
    grids = [grid if each else None for grid, each in zip(grids_of(model, sizes), cut, strict=True)]
    views = [1 if grid is None else 1 + grid[0] * grid[1] for grid in grids]
    columns = [None if grid is None else grid[1] for grid in grids]
    check_views(pixels, views)
    placeholders = placeholders_of(
        model,
        tower.tokens.count,
        views,
        sizes,
        vision_aspect_ratio=model.config.vision_aspect_ratio,
    )
    spans = [
        ImageSpan(count, tower.kept_tokens(number))
        for number, count in zip(views, placeholders, strict=True)
    ]

    def encode(wanted: dict) -> Encoded:
        vision, layer = model.model.vision_tower, model.config.vision_feature_layer
        seen = views_of(pixels, views)
        output, states, run = run_tower(tower, vision, seen, views, columns, {}, layer)
        kept = run.kept(states)
        projected = model.model.multi_modal_projector(torch.cat(kept))  # (sum of N', C)
        features = list(projected.split([len(image) for image in kept]))
        places = [places_of(*each) for each in zip(run.selections, spans, strict=True)]
        output.pooler_output = features
        return Encoded(features, run.selections, places, output)

    return spans, encode


def _videos(
    model: Any, tower: ClipTower, pixels: Tensor
) -> tuple[list[ImageSpan], Callable[[dict], Encoded]]:
    videos, frames = pixels.shape[:2]
    tokens: Tokens = tower.pooled
    budget = min(tower.config.budget(tokens.count), tokens.count)  # of a frame
    spans = [ImageSpan(frames * tokens.count + 1, frames * budget + 1)] * videos

    def encode(wanted: dict) -> Encoded:
        inner, layer = model.model, model.config.vision_feature_layer
        output, states, run = run_tower(
            tower, inner.vision_tower, pixels.flatten(0, 1), [frames] * videos, [None] * videos,
            {}, layer, tokens=tokens, budgets=[budget] * videos,
        )  # fmt: skip
        kept = run.kept(states)
        if budget == tokens.count:  # to the last bit as the model has it
            found = inner.apply_pooling(inner.multi_modal_projector(states)).flatten(0, 1)
        else:
            chosen = torch.cat([each.indices for each in run.selections]).flatten()
            device = kept[0].device
            weights = tokens.table("weights", device)[chosen.to(device)]  # (sum of N', g)
            projected = inner.multi_modal_projector(torch.cat(kept))  # (sum of g N', C)
            found = projected.unflatten(0, weights.shape) * weights.to(projected).unsqueeze(2)
            found = found.sum(dim=1)  # (sum of N', C)
        newline = inner.image_newline.to(found).unsqueeze(0)
        features = [torch.cat([each, newline]) for each in found.chunk(videos)]
        last = torch.full((1,), frames * tokens.count, device=found.device)  # without a copy
        places = [torch.cat([flat_indices([each]).to(last), last]) for each in run.selections]
        output.pooler_output = torch.stack(features)
        return Encoded(features, run.selections, places, output)

    return spans, encode


def _pooled(model: Any) -> Tokens:
    """Of a video's frame: the patches that the model pools to a token, and what each counts."""
    patches = patch_columns(model.model.vision_tower) ** 2
    pooled = model.model.apply_pooling(torch.eye(patches, device="cpu").unsqueeze(0))[
        0
    ]  # (N, patches)
    weights, groups = pooled.topk(int((pooled > 0).sum(dim=1).max()), dim=1)
    return Tokens(patches, extra=0, groups=groups, weights=weights)
