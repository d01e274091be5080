"""received_attention_maps: the score of every token in every layer of a vision encoder.

What the paper's analyses rest on (section "Hierarchical attention" and its figures of attention
maps, IoU and dispersion). Scores come from the same hooks as the patch's, one layer at a time, so
that memory grows with layers x tokens and no N x N map is ever held.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hiprune.errors import HiPruneError


def received_attention_maps(vision_model: Any, pixel_values: Tensor, **inputs: Any) -> Tensor:
    """Attention that each image token receives in every layer (paper, Eq. of A).

    The score of a token is the mean over heads and queries of the layer's attention to it. CLS,
    distillation and register tokens count as queries; as keys they are dropped, so that a layer's
    scores sum to less than 1 where there are such tokens.

    Args:
        vision_model: a vision encoder of transformers: CLIP, SigLIP, SigLIP2, ViT, DeiT, DINOv2
            (with registers or without), or the vision tower of Qwen2-VL, Qwen2.5-VL or Qwen3-VL
            (``model.model.visual``). Of a LLaVA, its ``model.model.vision_tower``.
        pixel_values: as the encoder's image processor gives them.
        inputs: what else the encoder's forward takes: ``pixel_attention_mask`` and
            ``spatial_shapes`` of SigLIP2, ``grid_thw`` of Qwen's,
            ``interpolate_pos_encoding`` of others.

    Returns:
        (layers, images, tokens) float32, tokens in raster order. SigLIP2: padding, which neither
        attends nor is attended to, scores 0. Qwen's: merged tokens, the mean of their patches'
        scores; a windowed block is scored within its windows, as it attends; the frames of a video
        count as images.

    Raises:
        HiPruneError: an encoder of another kind, or one of its layers that did not run exactly
            once; Qwen's: images of different grids (give them one by one).
    """
    return maps_and_features(vision_model, pixel_values, **inputs)[0]


@torch.no_grad()
def maps_and_features(
    vision_model: Any, pixel_values: Tensor, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """:func:`received_attention_maps`, and what the encoder makes of the tokens, in one pass.

    Returns:
        The maps, and (images, tokens, C) features of the last layer, as the encoder's
        ``last_hidden_state`` has them, without the extra tokens (Qwen's: merged tokens, after
        the merger's projection, as its ``pooler_output`` has them).
    """
    return _adapter(vision_model).run(vision_model, pixel_values, **inputs)


def extra_tokens(vision_model: Any) -> int:
    """How many tokens stand before an encoder's image tokens: CLS, distillation, registers.

    Raises:
        HiPruneError: an encoder of another kind.
    """
    return _adapter(vision_model).extra_tokens(vision_model)


def _adapter(vision_model: Any) -> Any:
    from hiprune.models.registry import ENCODERS

    found = getattr(getattr(vision_model, "config", None), "model_type", None)
    if found not in ENCODERS:
        raise HiPruneError(
            f"vision_model: {type(vision_model).__qualname__} of model_type {found!r}; expected a "
            f"vision encoder of transformers with one of {', '.join(ENCODERS)}"
        )
    return ENCODERS[found]
