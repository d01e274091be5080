"""An encoder, and what it makes of one image: scores of all layers, features, where tokens lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paths  # noqa: F401, which finds checkpoints
import torch
from torch import Tensor

from hiprune.maps import extra_tokens, maps_and_features
from hiprune.token_grids import TokenGrid, single_grid, whole_box

if TYPE_CHECKING:
    from PIL.Image import Image

TRAINED = {
    "tiny-llava": "trained LLaVA-1.5 tower of this repository",
    "tiny-llava-next": "trained LLaVA-NeXT tower of this repository",
    "tiny-qwen": "trained Qwen2.5-VL tower of this repository",
}


@dataclass(frozen=True)
class Look:
    """What an encoder makes of one image.

    Attributes:
        maps: (layers, V, N) received attention; V > 1 for LLaVA-NeXT alone.
        features: (V, N, C) of the output layer.
        grids: where the tokens lie.
    """

    maps: Tensor
    features: Tensor
    grids: list[TokenGrid]


@dataclass(frozen=True)
class Encoder:
    """An encoder and how to look at an image with it.

    Attributes:
        name: for captions.
        family: which generated scenes it was trained on; None: it was trained on photos.
        layers: their number.
        output_layer: counted from 1, the layer whose features are shown.
        tokens: how many it makes of a square image, in words.
        look: a square image -> a Look.
    """

    name: str
    family: str | None
    layers: int
    output_layer: int
    tokens: str
    look: Callable[[Image], Look]

    @property
    def middle(self) -> int:
        """L/2, counted from 1."""
        return max(1, self.layers // 2)


def of_checkpoint(name: str, device: str) -> Encoder:
    """The vision tower of a LLaVA or Qwen2.5-VL."""
    from checkpoints import find_checkpoint
    from hiprune.models.pictures import picture

    checkpoint = find_checkpoint(name)
    model, processor = checkpoint.load(device)

    def look(image: Image) -> Look:
        made = picture(model, processor, image)
        pixels = made.pixels.to(model.device, model.dtype)
        pixels = pixels[0] if pixels.ndim == 5 else pixels  # LLaVA-NeXT: its views
        maps, features = maps_and_features(made.tower, pixels, **made.tower_inputs)
        if checkpoint.family != "qwen2_5_vl":  # whose last layer is the output layer
            features = _hidden(made.tower, pixels, made.output_layer)
        return Look(maps.cpu(), features.float().cpu(), made.grids)

    if checkpoint.family == "qwen2_5_vl":
        layers = output_layer = len(model.model.visual.blocks)
        tokens = "as many tokens as the image has squares of 28 pixels"
    else:
        config = model.model.vision_tower.config
        layers = config.num_hidden_layers
        output_layer = model.config.vision_feature_layer % (layers + 1)
        columns = config.image_size // config.patch_size
        tokens = f"{columns} x {columns} tokens"
    family = checkpoint.family if checkpoint.tiny else None
    return Encoder(TRAINED.get(name, name), family, layers, output_layer, tokens, look)


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
    layers = model.config.num_hidden_layers
    # LLaVA takes CLIP's features from the last layer but one.
    output_layer = layers - 1 if model.config.model_type == "clip_vision_model" else layers

    def look(image: Image) -> Look:
        pixels = processor(images=image, return_tensors="pt")["pixel_values"].to(device)
        maps, features = maps_and_features(model, pixels)
        if output_layer != layers:
            features = _hidden(model, pixels, output_layer)
        rows, columns = (side // model.config.patch_size for side in pixels.shape[-2:])
        grid = single_grid(rows, columns, whole_box(image.size))
        return Look(maps.cpu(), features.float().cpu(), [grid])

    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    columns = size["height"] // model.config.patch_size
    tokens = f"{columns} x {columns} tokens"
    return Encoder(Path(name).name, None, layers, output_layer, tokens, look)


@torch.no_grad()
def _hidden(tower: Any, pixels: Tensor, layer: int) -> Tensor:
    """(V, N, C) features after a layer counted from 1."""
    states = tower(pixels, output_hidden_states=True).hidden_states
    return states[layer][:, extra_tokens(tower) :]
