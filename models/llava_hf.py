"""transformers' own LLaVA-1.5 and LLaVA-NeXT (llava-hf/*), 5.17 to 5.x.

The tower's tokens are chosen as it runs (:mod:`hiprune.models.clip`), and the projector sees the
kept ones alone (all, for a method that looks at projected ones). Un-padding and newline tokens of
LLaVA-NeXT are not used, as in the paper's code (merge type ``spatial``): kept tokens of the base
view, then those of the grid in its raster order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hiprune.models.base import Transformers
from hiprune.models.clip import ClipTower
from hiprune.models.clip_run import run_tower, selects_states
from hiprune.models.clip_text import ClipText
from hiprune.models.prompt import ImageSpan
from hiprune.models.registry import register
from hiprune.models.views import FAMILIES, max_views, tower_size
from hiprune.models.visuals import Encoded, Kind
from torch import Tensor

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle
from hiprune.selection import TokenSelection


@register(
    "transformers",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    families=FAMILIES,
)
class LlavaHf(Transformers):
    kinds = (Kind(1, "image", "pixel_values", "image_sizes", "image_token_id"),)

    def family(self, model: Any) -> str:
        """ "llava_next" where images are cut into views, "llava" elsewhere."""
        return "llava_next" if _pinpoints(model) is not None else "llava"

    def size(self, model: Any) -> dict[str, int]:
        return tower_size(clip_of(model), _max_views(model))

    def tower(self, model: Any, config: HiPruneConfig) -> ClipTower:
        layer = model.config.vision_feature_layer
        return ClipTower(clip_of(model), layer, config, _max_views(model))

    def patch_tower(self, model: Any, handle: PruneHandle) -> None:
        handle.tower.patch(handle, model.model.vision_tower)

    def text(self, model: Any, text: Any) -> ClipText:
        return ClipText.found(text).fits(model.model.vision_tower)

    def check(self, model: Any, arguments: dict[str, Any]) -> None:
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            own = getattr(model.config, name)
            if arguments.get(name) not in (None, own):
                raise HiPruneError(f"{name}={arguments[name]!r}: expected the model's own, {own!r}")

    def visuals(
        self, model: Any, tower: ClipTower, kind: Kind, pixels: Any, sizes: Any
    ) -> tuple[list[ImageSpan], Callable[[dict], Encoded]]:
        """
        Args:
            pixels: (images, 3, H, W); of LLaVA-NeXT (images, most V, 3, H, W), or the views one
                after the other, (sum of V, 3, H, W).
            sizes: of LLaVA-NeXT, (images, 2), height and width of each image.
        """
        views, placeholders, columns = _count(model, tower, pixels, sizes)
        spans = [
            ImageSpan(count, tower.kept_tokens(number))
            for number, count in zip(views, placeholders, strict=True)
        ]

        def encode(wanted: dict) -> Encoded:
            return _encode(model, tower, pixels, views, columns, spans, wanted)

        return spans, encode


def _encode(
    model: Any,
    tower: ClipTower,
    pixels: Tensor,
    views: list[int],
    columns: list[int | None],
    spans: list[ImageSpan],
    wanted: dict,
) -> Encoded:
    """The tower, the choice of tokens, the projector on the kept."""
    # Since transformers 5.23 LLaVA hands on what it is asked for, LLaVA-NeXT does not.
    wanted = wanted if selects_states() and _pinpoints(model) is None else {}
    output, states, run = run_tower(
        tower, model.model.vision_tower, views_of(pixels, views), views, columns, wanted,
        model.config.vision_feature_layer,
    )  # fmt: skip
    hidden, tokens = (None, states) if run.short else (states, states[:, 1:])
    features = run.projected(tokens, model.model.multi_modal_projector, hidden)  # (N', C) of each
    places = [places_of(*each) for each in zip(run.selections, spans, strict=True)]
    output.pooler_output = features
    return Encoded(features, run.selections, places, output)


def places_of(selection: TokenSelection, span: ImageSpan) -> Tensor:
    """(N',) the placeholder that each token of an image stands for; labels come from there."""
    if len(selection.indices) == 1 and selection.merged is None:
        return selection.indices[0]
    # Placeholders of LLaVA-NeXT count newlines and leave out padding: no token is any one's; nor is
    # a merged one.
    places = torch.arange(span.kept, device=selection.indices.device)
    return places.clamp(max=span.placeholders - 1)


def _count(
    model: Any, tower: ClipTower, pixels: Any, sizes: Any
) -> tuple[list[int], list[int], list[int | None]]:
    """Of each image: its views V, its placeholders in the unpruned prompt, grid views in a row."""
    if not isinstance(pixels, Tensor) or pixels.ndim not in (4, 5):
        shape = tuple(getattr(pixels, "shape", ())) or type(pixels).__name__
        raise HiPruneError(f"pixel_values: {shape}; expected a tensor (..., 3, H, W)")
    tokens = tower.columns**2  # N
    pinpoints = _pinpoints(model)  # [height, width]
    if pinpoints is None:
        if pixels.ndim != 4:
            raise HiPruneError(
                f"pixel_values: shape {tuple(pixels.shape)}; expected (images, 3, H, W)"
            )
        return [1] * len(pixels), [tokens] * len(pixels), [None] * len(pixels)
    if sizes is None:
        raise HiPruneError("image_sizes=None: expected (height, width) of every image")
    grids = grids_of(model, sizes)
    views = [1 + rows * columns for rows, columns in grids]
    check_views(pixels, views)
    strategy = {"vision_feature_select_strategy": "default"}
    placeholders = placeholders_of(model, tokens, views, sizes, **strategy)
    return views, placeholders, [columns for _, columns in grids]


def grids_of(model: Any, sizes: Any) -> list[tuple[int, int]]:
    """Rows and columns of views that images of these (height, width) are cut into."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    side = model.model.vision_tower.config.image_size
    return [get_anyres_image_grid_shape(size, _pinpoints(model), side) for size in sizes]


def check_views(pixels: Tensor, views: Sequence[int]) -> None:
    """(images, most V, 3, H, W) or (sum of V, 3, H, W): are they images of so many views?"""
    stacked = pixels.ndim == 5 and pixels.shape[1] >= max(views, default=0)
    if len(pixels) != (len(views) if stacked else sum(views)):
        raise HiPruneError(
            f"pixel_values: shape {tuple(pixels.shape)}; expected images of {views} views, as "
            f"image_sizes tell ({len(views)} images)"
        )


def views_of(pixels: Tensor, views: Sequence[int]) -> Tensor:
    """The same -> (sum of V, 3, H, W): images with fewer views are filled up with zeros."""
    if pixels.ndim == 4:
        return pixels
    return torch.cat([image[:count] for image, count in zip(pixels, views, strict=True)])


def placeholders_of(
    model: Any, tokens: int, views: Sequence[int], sizes: Any, **settings: Any
) -> list[int]:
    """How many tokens the unpatched model makes of each image, un-padded and with newlines."""
    packed, _ = model.model.pack_image_features(
        [torch.empty(count, tokens, 1, device="meta") for count in views],
        sizes,
        image_newline=torch.empty(1, device="meta"),
        **settings,
    )
    return [len(image) for image in packed]


def _pinpoints(model: Any) -> list | None:
    return getattr(model.config, "image_grid_pinpoints", None)


def _max_views(model: Any) -> int:
    pinpoints = _pinpoints(model)
    side = model.model.vision_tower.config.image_size
    return 1 if pinpoints is None else max_views(pinpoints, side)


def clip_of(model: Any, name: str = "vision_tower") -> Any:
    """A CLIP tower of a model, after a look at how its features are taken."""
    config, tower = model.config, getattr(model.model, name)
    if not hasattr(tower, "pre_layrnorm"):
        raise HiPruneError(
            f"model: its vision tower is a {type(tower).__name__}; expected a CLIPVisionModel"
        )
    if not isinstance(config.vision_feature_layer, int):
        raise HiPruneError(
            f"vision_feature_layer={config.vision_feature_layer!r}: expected one layer, an int"
        )
    if config.vision_feature_select_strategy != "default":
        raise HiPruneError(
            f"vision_feature_select_strategy={config.vision_feature_select_strategy!r}: expected "
            "'default'"
        )
    return tower
