"""Tiny image encoders of transformers, pictures for them, and their whole attention maps."""

from __future__ import annotations

import copy
import functools

import torch
import transformers

PIXELS, PATCH, LAYERS, WIDTH, HEADS = 56, 14, 3, 24, 3
SIDE = PIXELS // PATCH
# Class of the model -> tokens before the image's
EXTRA = {
    "CLIPVisionModel": 1,
    "SiglipVisionModel": 0,
    "Siglip2VisionModel": 0,
    "ViTModel": 1,
    "DeiTModel": 2,
    "Dinov2Model": 1,
    "Dinov2WithRegistersModel": 1 + 4,
}
# SigLIP2's images: (rows, columns) of patches, filled up to 12
SHAPES = [(3, 4), (2, 4), (4, 3)]


@functools.cache
def load(name: str, attention: str = "eager") -> torch.nn.Module:
    """An encoder with random weights, the same for every attention; to be left as it is."""
    torch.manual_seed(0)
    settings = {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "patch_size": PATCH, "image_size": PIXELS,
    }  # fmt: skip
    if name == "Siglip2VisionModel":
        settings = {**settings, "num_patches": 16}
        del settings["image_size"]
    if name.startswith("Dinov2"):
        settings["mlp_ratio"] = 2
    model_class = getattr(transformers, name)
    config = model_class.config_class(**settings)
    config._attn_implementation = attention
    model = model_class(config)
    for weight_name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "position" not in weight_name:
            sharp = any(part in weight_name for part in ("q_proj", "k_proj", "query", "key"))
            gain = 2.5 if sharp else 1.0  # attention that has peaks
            torch.nn.init.normal_(parameter, std=gain * parameter.shape[1] ** -0.5)
    for name_, parameter in model.named_parameters():
        if "token" in name_ or "position" in name_:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def inputs(name: str, images: int = 2) -> dict[str, torch.Tensor]:
    """What the encoder's forward takes for so many images of noise."""
    noise = torch.Generator().manual_seed(7)
    if name != "Siglip2VisionModel":
        return {"pixel_values": torch.randn(images, 3, PIXELS, PIXELS, generator=noise)}
    shapes = torch.tensor(SHAPES[:images])
    most = int(shapes.prod(dim=1).max())
    mask = torch.arange(most) < shapes.prod(dim=1, keepdim=True)
    pixels = torch.randn(images, most, 3 * PATCH**2, generator=noise) * mask.unsqueeze(-1)
    return {
        "pixel_values": pixels,
        "pixel_attention_mask": mask.int(),
        "spatial_shapes": shapes,
    }


@torch.no_grad()
def by_hand(name: str, arguments: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(layers, B, N) and (B, N, C) in float64, from the whole maps that the eager model gives."""
    model = copy.deepcopy(load(name, "eager")).double()
    arguments = {
        key: value.double() if value.is_floating_point() else value
        for key, value in arguments.items()
    }
    out = model(**arguments, output_attentions=True)
    mask = arguments.get("pixel_attention_mask")
    layers = []
    for attention in out.attentions:  # (B, H, E+N, E+N)
        if mask is None:
            layers.append(attention.mean(dim=(1, 2)))
        else:  # queries that are padding do not count
            there = mask.double()[:, None, :, None]
            layers.append((attention * there).sum(dim=(1, 2)) / (HEADS * there.sum(dim=(1, 2))))
    return torch.stack(layers)[:, :, EXTRA[name] :], out.last_hidden_state[:, EXTRA[name] :]


def hooks(model: torch.nn.Module) -> int:
    """How many hooks there are on an encoder."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
