"""One picture for a model of transformers: its pixels, and where on it the tokens lie that the
vision tower makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hiprune.models.internvl import tokens_of
from hiprune.models.registry import adapter_of
from hiprune.models.tokens import Tokens
from torch import Tensor

from hiprune.errors import HiPruneError
from hiprune.figures.token_grids import (
    Box,
    TokenGrid,
    anyres_grids,
    cropped_box,
    padded_box,
    single_grid,
    tiled_grids,
    whole_box,
)
from hiprune.images import pad_to_square, to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Picture:
    """What a model needs to see one image, and how its tokens lie on it.

    Attributes:
        pixels, sizes: arguments of :meth:`hiprune.PruneHandle.encode_images`.
        grids: of the image's tokens; LLaVA-NeXT has two (base view, grid of views), and so has
            InternVL (tiles, thumbnail).
        tower: the vision tower, an argument of :func:`hiprune.received_attention_maps`, as
            ``views`` is.
        tower_inputs: its other arguments.
        layers: of the tower.
        output_layer: the layer, counted from 1, that the features come from.
        tokens: what tokens are made of the tower's patches; None: the maps are of tokens already.
    """

    pixels: Tensor
    sizes: Tensor | None
    grids: list[TokenGrid]
    tower: Any
    tower_inputs: dict[str, Tensor]
    layers: int
    output_layer: int
    tokens: Tokens | None = None

    @property
    def views(self) -> Tensor:
        """What the tower takes: (V, 3, S, S), V > 1 for LLaVA-NeXT; of Qwen's its patches."""
        return self.pixels[0] if self.pixels.ndim == 5 else self.pixels

    def token_maps(self, maps: Tensor) -> Tensor:
        """(layers, V, patches), as received_attention_maps gives them -> (layers, V, N)."""
        return maps if self.tokens is None else self.tokens.scores(maps)


def picture(model: Any, image_processor: Any, image: Image, *, pad: bool = True) -> Picture:
    """Process an image as the model's image processor does, after LLaVA-1.5's padding.

    So do the evaluations; those of Qwen2.5-VL with limits of their own, 256 * 28 * 28 to 1605632
    pixels, that a processor has if it was loaded with them as ``min_pixels`` and ``max_pixels``.

    Args:
        model: of transformers, of any family that is registered.
        image_processor: the model's.
        image: in any mode.
        pad: of LLaVA-1.5: pad to a square, as the original does (and the paper's numbers need);
            False: what the processor does by itself, which is to crop the centre.

    Raises:
        HiPruneError: a processor that does something else, or that refuses the image.
    """
    image = to_rgb(image)
    if hasattr(model.model, "visual"):
        return _qwen(model, image_processor, image)
    family = adapter_of(model).family(model)
    if family in ("llava_next", "llava_onevision"):
        return _llava_next(model, image_processor, image)
    if family == "internvl":
        return _internvl(model, image_processor, image)
    # Video-LLaVA was trained on the crop.
    return _llava(model, image_processor, image, pad and family != "video_llava")


def _llava(model: Any, processor: Any, image: Image, pad: bool) -> Picture:
    pad = pad or bool(getattr(processor, "do_pad", False))
    seen = pad_to_square(image, processor.image_mean) if pad else image
    left, top, right, bottom = _box_in_seen(processor, seen.size)
    margin_left, margin_top = padded_box(image.size)[:2] if pad else (0, 0)
    box = (left + margin_left, top + margin_top, right + margin_left, bottom + margin_top)
    inputs = _processed(processor, seen)
    pixels = inputs.get("pixel_values", inputs.get("pixel_values_images"))  # (1, 3, S, S)
    tower, columns = _tower(model)
    name = "padded to a square" if pad else "centre crop"
    grid = single_grid(
        columns, columns, box, name if min(image.size) < max(image.size) else "image"
    )
    return Picture(pixels, None, [grid], tower, {}, *_layers(model))


def _box_in_seen(processor: Any, size: tuple[int, int]) -> Box:
    """What a CLIP processor leaves of an image of (width, height): resized, its centre cut out."""
    resize, crop = processor.size, processor.crop_size
    if processor.do_resize and "shortest_edge" in resize and processor.do_center_crop:
        return cropped_box(size, resize["shortest_edge"], (crop["width"], crop["height"]))
    raise HiPruneError(
        f"image processor: do_resize={processor.do_resize}, do_center_crop="
        f"{processor.do_center_crop}, size={dict(resize)}; expected one that resizes the "
        "shortest edge and crops the centre"
    )


def _llava_next(model: Any, processor: Any, image: Image) -> Picture:
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    inputs = _processed(processor, image)
    tower, columns = _tower(model)
    side = tower.config.image_size
    views = get_anyres_image_grid_shape(
        inputs["image_sizes"][0], model.config.image_grid_pinpoints, side
    )
    pixels = inputs["pixel_values"]  # (1, V, 3, S, S)
    grids = anyres_grids(image.size, tuple(map(int, views)), side, columns)
    return Picture(pixels, inputs["image_sizes"], grids, tower, {}, *_layers(model))


def _internvl(model: Any, processor: Any, image: Image) -> Picture:
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    # As InternVL's processor calls it.
    inputs = _processed(processor, image, crop_to_patches=True)
    pixels, side = inputs["pixel_values"], processor.size["height"]  # (tiles, 3, S, S)
    limits = processor.min_patches, processor.max_patches
    columns, rows = get_optimal_tiled_canvas(image.size[::-1], (side, side), *limits)
    tower = model.model.vision_tower
    tokens = tokens_of(model)
    grids = tiled_grids(image.size, (rows, columns), tokens.columns)
    if grids[0].total != len(pixels) * tokens.count:
        raise HiPruneError(
            f"image processor: {len(pixels)} tiles of an image; expected {rows} x {columns}, and a "
            "thumbnail after more than one"
        )
    return Picture(pixels, None, grids, tower, {}, *_layers(model), tokens)


def _qwen(model: Any, processor: Any, image: Image) -> Picture:
    inputs = _processed(processor, image)
    tower, grid_thw = model.model.visual, inputs["image_grid_thw"]
    _, rows, columns = (int(length) for length in grid_thw[0])
    merge = tower.spatial_merge_size
    grid = single_grid(rows // merge, columns // merge, whole_box(image.size))
    more, layers = {"grid_thw": grid_thw}, len(tower.blocks)
    return Picture(inputs["pixel_values"], grid_thw, [grid], tower, more, layers, layers)


def _processed(processor: Any, image: Image, **options: Any) -> Any:
    """What a processor makes of an image; on odd sizes it raises anything, told in a line."""
    try:
        return processor(images=image, return_tensors="pt", **options)
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise HiPruneError(
            f"image of {image.width} x {image.height} pixels: the model's image processor refuses "
            f"it ({said}); expected one of other proportions or more pixels"
        ) from error


def _tower(model: Any) -> tuple[Any, int]:
    """The tower of a LLaVA, and c."""
    inner = model.model
    tower = inner.vision_tower if hasattr(inner, "vision_tower") else inner.image_tower
    return tower, tower.config.image_size // tower.config.patch_size


def _layers(model: Any) -> tuple[int, int]:
    """Of a LLaVA's tower, and the output layer; ``vision_feature_layer`` -1 is the last layer."""
    layers = model.config.vision_config.num_hidden_layers
    return layers, model.config.vision_feature_layer % (layers + 1)
