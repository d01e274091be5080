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
from hiprune.models.base import Encoded, Kind, Transformers, register
from hiprune.models.clip import ClipTower
from hiprune.models.clip_text import ClipText
from hiprune.models.prompt import ImageSpan
from hiprune.models.views import FAMILIES, max_views, tower_size
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
        return tower_size(_clip(model.model), _max_views(model))

    def tower(self, model: Any, config: HiPruneConfig) -> ClipTower:
        layer = model.config.vision_feature_layer
        return ClipTower(_clip(model.model), layer, config, _max_views(model))

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
    from transformers.modeling_outputs import BaseModelOutputWithPooling
    from transformers.utils import output_capturing

    if pixels.ndim == 5:  # images with fewer views than the most are filled up with zeros
        each = zip(pixels, views, strict=True)
        pixels = torch.cat([image[:count] for image, count in each])
    vision = model.model.vision_tower
    weight = vision.embeddings.patch_embedding.weight
    if weight.device.type != "meta":  # where weights are offloaded, accelerate moves the input
        pixels = pixels.to(weight.device)
    # Since transformers 5.23 LLaVA hands on what it is asked for, LLaVA-NeXT does not, and both ask
    # for the hidden state of this index alone.
    newer = hasattr(output_capturing, "select_hidden_states")
    wanted = wanted if newer and _pinpoints(model) is None else {}
    hidden = None
    with tower.passing([vision], pixels, views, columns, any(wanted.values())) as run:
        if run.short:
            output, features = BaseModelOutputWithPooling(), vision(pixels)[0]
        else:
            states = wanted.get("output_hidden_states")
            states = states or (model.config.vision_feature_layer if newer else True)
            output = vision(pixels, return_dict=True, **{**wanted, "output_hidden_states": states})
            hidden = output.hidden_states[tower.output_layer]
            features = hidden[:, 1:]
    features = run.projected(features, model.model.multi_modal_projector, hidden)  # (N', C) of each
    places = [_places(*each) for each in zip(run.selections, spans, strict=True)]
    output.pooler_output = features
    return Encoded(features, run.selections, places, output)


def _places(selection: TokenSelection, span: ImageSpan) -> Tensor:
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
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    side = model.model.vision_tower.config.image_size
    grids = [get_anyres_image_grid_shape(size, pinpoints, side) for size in sizes]
    views = [1 + rows * columns for rows, columns in grids]
    stacked = pixels.ndim == 5 and pixels.shape[1] >= max(views, default=0)
    if len(pixels) != (len(views) if stacked else sum(views)):
        raise HiPruneError(
            f"pixel_values: shape {tuple(pixels.shape)}; expected images of {views} views, as "
            f"image_sizes tell ({len(views)} images)"
        )
    return views, _placeholders(model, tokens, views, sizes), [columns for _, columns in grids]


def _placeholders(model: Any, tokens: int, views: Sequence[int], sizes: Any) -> list[int]:
    """How many tokens the unpatched model makes of each image, un-padded and with newlines."""
    packed, _ = model.model.pack_image_features(
        [torch.empty(count, tokens, 1, device="meta") for count in views],
        sizes,
        vision_feature_select_strategy="default",
        image_newline=torch.empty(1, device="meta"),
    )
    return [len(image) for image in packed]


def _pinpoints(model: Any) -> list | None:
    return getattr(model.config, "image_grid_pinpoints", None)


def _max_views(model: Any) -> int:
    pinpoints = _pinpoints(model)
    side = model.model.vision_tower.config.image_size
    return 1 if pinpoints is None else max_views(pinpoints, side)


def _clip(inner: Any) -> Any:
    """The CLIP tower of a model, after a look at how its features are taken."""
    config, tower = inner.config, inner.vision_tower
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
