"""Image encoders of transformers, all layers scored: CLIP, SigLIP, SigLIP2, ViT, DeiT, DINOv2,
InternViT.

Their attention modules differ between versions and models in names alone: queries and keys are
made by two linear layers, ``q_proj`` and ``k_proj`` or ``query`` and ``key``; some InternViTs
normalise them.
"""

from __future__ import annotations

from typing import Any

import torch
from hiprune.models.registry import register
from torch import Tensor, nn

from hiprune.capture import ScoredLayer, captured
from hiprune.errors import HiPruneError
from hiprune.scores import received_attention

_PROJECTIONS = (("q_proj", "k_proj"), ("query", "key"))
# Tokens before the image's: CLS; DeiT: CLS and distillation. Registers stand after CLS.
_EXTRA = {
    "clip_vision_model": 1,
    "siglip_vision_model": 0,
    "siglip2_vision_model": 0,
    "vit": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "internvl_vision": 1,
}


@register("transformers", encoders=tuple(_EXTRA))
class Encoders:
    """The adapter of all of these."""

    def extra_tokens(self, model: Any) -> int:
        """E: see :func:`hiprune.figures.maps.extra_tokens`."""
        return extra_tokens(model)

    def run(self, model: Any, pixel_values: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        """(layers, images, N) scores and (images, N, C) features; see hiprune.figures.maps."""
        return run(model, pixel_values, **inputs)


def extra_tokens(model: Any) -> int:
    return _EXTRA[model.config.model_type] + getattr(model.config, "num_register_tokens", 0)


def run(model: Any, pixel_values: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
    model = getattr(model, "base_model", model)  # without a classifier's head, where it has one
    extra = extra_tokens(model)
    mask = inputs.get("pixel_attention_mask")
    mask = None if mask is None or bool(mask.bool().all()) else mask.bool()
    attentions = _attentions(model)
    layers = {number: _scored(module, mask) for number, module in enumerate(attentions, start=1)}
    with captured(layers) as recording:
        output = model(pixel_values, return_dict=True, **inputs)
        scores = recording.found()
    if not hasattr(output, "last_hidden_state"):
        raise HiPruneError(
            f"vision_model: {type(model).__qualname__} returns no last_hidden_state; expected "
            "the encoder itself, as its Model class makes it"
        )
    device = scores[1].device  # the layers may lie on several
    maps = torch.stack([scores[n].to(device) for n in sorted(scores)])  # (layers, B, E+N)
    return maps[:, :, extra:], output.last_hidden_state[:, extra:]


def _attentions(model: Any) -> list[nn.Module]:
    """The layers' attention modules, first layer first."""
    found = [
        module
        for module in model.modules()
        if any(all(hasattr(module, name) for name in names) for names in _PROJECTIONS)
    ]
    if len(found) != model.config.num_hidden_layers:
        raise HiPruneError(
            f"vision_model: {type(model).__qualname__} has {len(found)} attention modules with "
            f"query and key projections; expected one a layer, {model.config.num_hidden_layers}"
        )
    return found


def _scored(attention: Any, mask: Tensor | None) -> ScoredLayer:
    """
    Args:
        attention: a layer's attention module.
        mask: (images, N) bool, False where a token pads its image; None: there is no padding.
    """
    names = next(names for names in _PROJECTIONS if hasattr(attention, names[0]))
    heads = getattr(attention, "num_heads", None) or attention.num_attention_heads
    scale = getattr(attention, "scale", None) or getattr(attention, "scaling", None)

    def score(_: Any, query: Tensor, key: Tensor, **kwargs: Any) -> Tensor:
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
        if mask is None:
            return received_attention(query, key, scale)  # (B, H, E+N, D) x 2 -> (B, E+N)
        found = query.new_zeros(query.shape[0], query.shape[2], dtype=torch.float32)
        for image, there in enumerate(mask.to(query.device)):
            own = (x[image : image + 1, :, there] for x in (query, key))
            found[image, there] = received_attention(*own, scale)[0]
        return found

    return ScoredLayer(attention, names, score)
