"""An encoder, and what it makes of one image: scores of all layers, features, where tokens lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paths  # noqa: F401, which finds checkpoints
import torch
from PIL import Image
from torch import Tensor

from hiprune import HiPruneError
from hiprune.figures.maps import extra_tokens, maps_and_features
from hiprune.figures.token_grids import TokenGrid, cropped_box, single_grid

TRAINED = {
    "tiny-llava": "trained LLaVA-1.5 tower of this repository",
    "tiny-llava-next": "trained LLaVA-NeXT tower of this repository",
    "tiny-qwen": "trained Qwen2.5-VL tower of this repository",
}
MERGED = "the merged tokens, after the merger"  # Qwen2.5-VL's


@dataclass(frozen=True)
class Look:
    """What an encoder makes of one image.

    Attributes:
        maps: (layers, V, N) received attention; V > 1 for LLaVA-NeXT alone.
        output: (V, N, C) features of the output layer.
        last: (V, N, C) features of the last layer, the encoder's ``last_hidden_state``. Of
            Qwen2.5-VL both are the merged tokens, after the merger.
        grids: where the tokens lie.
    """

    maps: Tensor
    output: Tensor
    last: Tensor
    grids: list[TokenGrid]


@dataclass(frozen=True)
class Encoder:
    """An encoder and how to look at an image with it.

    Attributes:
        name: for captions.
        family: which generated scenes it was trained on; None: it was trained on photos.
        layers: their number.
        output, last: what a Look has under these names, in words.
        tokens: how many it makes of a square image, in words.
        look: a square image -> a Look.
    """

    name: str
    family: str | None
    layers: int
    output: str
    last: str
    tokens: str
    look: Callable[[Image.Image], Look]

    @property
    def middle(self) -> int:
        """L/2, counted from 1."""
        return max(1, self.layers // 2)


def of_checkpoint(name: str, device: str) -> Encoder:
    """The vision tower of a LLaVA or Qwen2.5-VL."""
    from hiprune.models.pictures import picture

    from hiprune.show.checkpoints import find_checkpoint

    checkpoint = find_checkpoint(name)
    model, processor = checkpoint.load(device)

    def look(image: Image.Image) -> Look:
        made = picture(model, processor, image)
        views = made.views.to(model.device, model.dtype)
        return _look(made.tower, views, made.output_layer, made.grids, **made.tower_inputs)

    blank = picture(model, processor, Image.new("RGB", (336, 336)))
    layers, columns = blank.layers, blank.grids[0].columns
    if checkpoint.family == "qwen2_5_vl":
        tokens = "as many tokens as the image has squares of 28 pixels"
        output = last = MERGED
    else:
        tokens = f"{columns} x {columns} tokens"
        output, last = f"layer {blank.output_layer}'s features", f"layer {layers}'s features"
    family = checkpoint.family if checkpoint.tiny else None
    return Encoder(TRAINED.get(name, name), family, layers, output, last, tokens, look)


def of_encoder(name: str, kind: str, device: str, local: bool) -> Encoder:
    """An encoder alone."""
    from transformers import AutoImageProcessor, AutoModel, CLIPVisionModel, SiglipVisionModel

    classes = {
        **dict.fromkeys(("clip", "clip_vision_model"), CLIPVisionModel),
        **dict.fromkeys(("siglip", "siglip_vision_model"), SiglipVisionModel),
    }
    load = classes.get(kind, AutoModel).from_pretrained
    model = load(name, local_files_only=local, dtype=torch.float32).eval().to(device)
    extra_tokens(model)  # an error for a model of another kind
    processor = AutoImageProcessor.from_pretrained(name, local_files_only=local)
    layers, patch = model.config.num_hidden_layers, model.config.patch_size
    resized, seen = _sides(processor)
    columns = seen // patch

    def look(image: Image.Image) -> Look:
        pixels = processor(images=image, return_tensors="pt")["pixel_values"].to(device)
        left, top, right, bottom = cropped_box(image.size, resized, (seen, seen))
        share = columns * patch / seen  # pixels that fill no patch are cut off, right and below
        box = (left, top, left + share * (right - left), top + share * (bottom - top))
        return _look(model, pixels, output_layer, [single_grid(columns, columns, box)])

    tokens = f"{columns} x {columns} tokens"
    if model.config.model_type == "clip_vision_model":
        output_layer = layers - 1  # as LLaVA takes CLIP's features
        output, last = f"layer {output_layer}'s features", f"layer {layers}'s features"
    else:
        output_layer = layers
        output = last = f"layer {layers}'s features, after the final norm"
    return Encoder(Path(name).name, None, layers, output, last, tokens, look)


def _sides(processor: Any) -> tuple[int, int]:
    """Pixels of a square image's side after resizing, and of what is cut out of its centre.

    Raises:
        HiPruneError: a processor that does something else.
    """
    resize = dict(processor.size)
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else resize
    known = set(resize) in ({"shortest_edge"}, {"height", "width"})
    square = len(set(resize.values())) == 1 and len(set(crop.values())) == 1
    if processor.do_resize and known and square and not getattr(processor, "do_pad", False):
        return next(iter(resize.values())), next(iter(crop.values()))
    raise HiPruneError(
        f"image processor: do_resize={processor.do_resize}, size={resize}, crop={crop}; expected "
        "one that resizes a square image to a square, and may crop a square in its centre"
    )


@torch.no_grad()
def _look(
    tower: Any, views: Tensor, output_layer: int, grids: list[TokenGrid], **inputs: Any
) -> Look:
    maps, last = maps_and_features(tower, views, **inputs)
    output = last
    if output_layer < len(maps):
        states = tower(views, output_hidden_states=True, **inputs).hidden_states
        output = states[output_layer][:, extra_tokens(tower) :]
    return Look(maps.cpu(), output.float().cpu(), last.float().cpu(), grids)
