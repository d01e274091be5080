"""transformers' InternVL (InternVL3 and before, OpenGVLab/*-hf), 5.17 to 5.x.

An image is cut into tiles, and a thumbnail of it follows them; a frame of a video is one tile. A
token is made of 2 x 2 patches of a tile (the pixel shuffle): its score is the mean of theirs, and
the projector sees the kept tokens alone. As for LLaVA-NeXT, each tile of an image keeps as many:
int(N' / tiles). What belongs to an image is told by the prompt alone, where each image, and each
frame, is one run of placeholders.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from hiprune.models.base import Transformers
from hiprune.models.clip import ClipTower
from hiprune.models.clip_layer import patch_columns
from hiprune.models.clip_run import run_tower
from hiprune.models.prompt import ImageSpan
from hiprune.models.registry import register
from hiprune.models.tokens import Tokens
from hiprune.models.views import check_budget, flat_indices
from hiprune.models.visuals import Encoded, Kind
from torch import Tensor

from hiprune.config import Family, HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle

# The most of an image, as the processor cuts it unless told otherwise: 12, and a thumbnail. The
# model's configuration does not say.
_TILES = 13
# Tiles of 256 tokens. l is as deep as the paper's of CLIP; the paper has no numbers of InternVL.
_FAMILY = Family(
    "internvl", "HIPRUNE_RETENTION", 0.334, _TILES * 256, object_layer=9, encoder_layers=24
)


@register("transformers", "InternVLForConditionalGeneration", families=(_FAMILY,))
class InternVL(Transformers):
    kinds = (Kind(1, "image", "pixel_values", "", "image_token_id"),)

    def family(self, model: Any) -> str:
        return "internvl"

    def size(self, model: Any) -> dict[str, int]:
        return {"layers": model.model.vision_tower.config.num_hidden_layers}

    def tower(self, model: Any, config: HiPruneConfig) -> ClipTower:
        own = model.config
        if not isinstance(own.vision_feature_layer, int):
            raise HiPruneError(
                f"vision_feature_layer={own.vision_feature_layer!r}: expected one layer, an int"
            )
        if own.vision_feature_select_strategy != "default":
            raise HiPruneError(
                f"vision_feature_select_strategy={own.vision_feature_select_strategy!r}: expected "
                "'default'"
            )
        vision, tokens = model.model.vision_tower, tokens_of(model)
        tower = ClipTower(vision, own.vision_feature_layer, config, None, tokens)
        why = "as the processor cuts an image; of one that cuts finer, give a share"
        check_budget(config.retention, _TILES, tokens.count, why=why)
        return tower

    def patch_tower(self, model: Any, handle: PruneHandle) -> None:
        handle.tower.patch(handle, model.model.vision_tower)

    def check(self, model: Any, arguments: dict[str, Any]) -> None:
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            own = getattr(model.config, name)
            if arguments.get(name) not in (None, own):
                raise HiPruneError(f"{name}={arguments[name]!r}: expected the model's own, {own!r}")

    def sizes(self, model: Any, kind: Kind, arguments: dict[str, Any], ids: Tensor) -> list[int]:
        """Tiles of each image: an image is a run of placeholders."""
        tokens = tokens_of(model).count  # N
        rows = (ids == model.config.image_token_id).tolist()
        runs = [len(list(run)) for row in rows for here, run in groupby(row) if here]
        if any(run % tokens for run in runs):
            raise HiPruneError(
                f"input_ids: runs of {runs} placeholders; expected multiples of the {tokens} "
                "tokens of a tile"
            )
        return [run // tokens for run in runs]

    def visuals(
        self, model: Any, tower: ClipTower, kind: Kind, pixels: Any, sizes: Any
    ) -> tuple[list[ImageSpan], Callable[[dict], Encoded]]:
        """
        Args:
            pixels: (sum of tiles, 3, H, W).
            sizes: tiles of each image; None: all are of one.
        """
        if not isinstance(pixels, Tensor) or pixels.ndim != 4:
            shape = tuple(getattr(pixels, "shape", ())) or type(pixels).__name__
            raise HiPruneError(f"pixel_values: {shape}; expected a tensor (tiles, 3, H, W)")
        tiles = [len(pixels)] if sizes is None else [int(count) for count in sizes]
        if sum(tiles) != len(pixels):
            raise HiPruneError(
                f"pixel_values: {len(pixels)} tiles; expected {sum(tiles)}, as many as images of "
                f"{tiles} tiles need"
            )
        tokens = tower.columns**2
        spans = [ImageSpan(count * tokens, tower.kept_tokens(count)) for count in tiles]

        def encode(wanted: dict) -> Encoded:
            layer, inner = model.config.vision_feature_layer, model.model
            output, states, run = run_tower(
                tower,
                inner.vision_tower,
                pixels,
                tiles,
                [None] * len(tiles),
                {},
                layer,
                layer == -1,
            )
            size = tower.tokens.groups.shape[1]
            found = (
                torch.cat(run.kept(states)).unflatten(0, (-1, size)).flatten(1)
            )  # (sum of N', 4 C_v)
            found = inner.multi_modal_projector(found)  # (sum of N', C)
            features = list(found.split([span.kept for span in spans]))
            each = {span.kept // count for span, count in zip(spans, tiles, strict=True)}
            # As the model's own, one tensor (tiles, N', C), where all tiles keep as many.
            output.pooler_output = found.unflatten(0, (-1, *each)) if len(each) == 1 else features
            places = [flat_indices([selection]) for selection in run.selections]
            return Encoded(features, run.selections, places, output)

        return spans, encode


def tokens_of(model: Any) -> Tokens:
    """Of a tile: the 4 patches that the model's pixel shuffle makes each token of, in its order."""
    side = patch_columns(model.model.vision_tower)
    index = torch.arange(side**2, dtype=torch.float64, device="cpu").view(1, side, side, 1)
    shuffled = model.model.pixel_shuffle(index, scale_factor=model.config.downsample_ratio)
    return Tokens(side**2, groups=shuffled.flatten(0, 2).long())  # (N, 4)
