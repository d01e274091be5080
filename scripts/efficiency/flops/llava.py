"""LlavaCounts: LLaVA-1.5 and LLaVA-NeXT, counted with fvcore on transformers' modules.

CLIP's embeddings and encoder layers, LLaVA's projector, Llama's decoder layers and lm_head, built
from their configurations on the meta device: without weights.
"""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiprune.config import FAMILIES
from scripts.efficiency.architectures import Architecture
from scripts.efficiency.configs import clip_config, llama_config
from scripts.efficiency.flops.count import (
    Call,
    LanguageModel,
    Logits,
    Picture,
    Work,
    count,
    meta,
    one_of,
)


class LlavaCounts(LanguageModel):
    """A :class:`scripts.efficiency.flops.work.Counts` of one architecture and picture."""

    def __init__(self, architecture: Architecture, picture: Picture) -> None:
        from transformers import CLIPVisionModel, LlamaForCausalLM, LlavaConfig
        from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

        config = LlavaConfig(
            vision_config=clip_config(architecture.vision),
            text_config=llama_config(architecture.text),
            vision_feature_layer=-2,
        )
        with torch.device("meta"):
            llm = LlamaForCausalLM(config.text_config)
            vision = CLIPVisionModel(config.vision_config)
            self.mlp = LlavaMultiModalProjector(config)
        super().__init__(llm.model, llm.lm_head)
        self.vision = getattr(vision, "vision_model", vision)  # of 4.37 and 5
        self.picture = picture
        self.config = config.vision_config
        encoder = self.vision.encoder.layers
        # Hidden state k is the output of layer k: 23 of 24.
        self.output_layer = config.vision_feature_layer % (len(encoder) + 1)
        object_layer = FAMILIES[architecture.family].object_layer
        self.scored_layers = {object_layer, self.output_layer}
        self.layer = _encoder_layer(one_of(encoder))  # all 24 have the same shapes: counted once

    def tower(self) -> Work:
        return self._patches + self._layer_work * len(self.vision.encoder.layers)

    def pruned_tower(self, kept: int) -> Work:
        last = OutputLayer(self.layer.module, kept // self.picture.views)
        return self._patches + self._layer_work * (self.output_layer - 1) + self._on_all(last)

    def scoring_pass(self) -> Work:
        heads = self.config.num_attention_heads
        size = (self.picture.views, heads, self._length, self.config.hidden_size // heads)
        return count(Logits(), meta(*size), meta(*size)) * len(self.scored_layers)

    def projector(self, tokens: int) -> Work:
        return count(self.mlp, meta(1, tokens, self.config.hidden_size))

    @property
    def _length(self) -> int:
        return self.picture.rows * self.picture.columns + 1  # CLS

    @cached_property
    def _patches(self) -> Work:
        # torch cannot trace a convolution on the meta device. These are a few MB of random
        # weights; one view is counted, and multiplied.
        embeddings = type(self.vision.embeddings)(self.config)
        side = self.config.image_size
        return count(embeddings, torch.zeros(1, 3, side, side)) * self.picture.views

    @cached_property
    def _layer_work(self) -> Work:
        return self._on_all(self.layer)

    def _on_all(self, layer: nn.Module) -> Work:
        return count(layer, meta(self.picture.views, self._length, self.config.hidden_size))


class OutputLayer(nn.Module):
    """A CLIPEncoderLayer's own modules, run as HiPrune runs the output layer: (V, 1+N, C_v).

    Args:
        layer: the CLIPEncoderLayer.
        kept: tokens of each view that go on. Which ones changes no count: the first.
    """

    def __init__(self, layer: Any, kept: int) -> None:
        super().__init__()
        self.layer = layer
        self.kept = kept

    def forward(self, hidden: Tensor) -> Tensor:
        layer, attention = self.layer, self.layer.self_attn
        normed = layer.layer_norm1(hidden)
        query, key, value = (
            project(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )  # (V, H, 1+N, D)
        attended = F.scaled_dot_product_attention(query[:, :, : self.kept], key, value)
        hidden = attention.out_proj(attended.transpose(1, 2).flatten(2))  # (V, N'/V, C_v)
        return layer.mlp(layer.layer_norm2(hidden))


def _encoder_layer(layer: nn.Module) -> Call:
    """As transformers 4.37 and 5 call it: without masks, which 4.37 has no defaults for."""
    masks = ("attention_mask", "causal_attention_mask")
    names = inspect.signature(layer.forward).parameters
    return Call(layer, **{mask: None for mask in masks if mask in names})
