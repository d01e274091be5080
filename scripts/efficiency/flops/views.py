"""ViewCounts: towers of views of one size, counted with fvcore on transformers' modules.

LLaVA-1.5, LLaVA-NeXT (CLIP), InternVL (InternViT) and LLaVA-OneVision (SigLIP): patch convolution,
encoder layers, projector, decoder layers and lm_head, built from their configurations on the meta
device: without weights.
"""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any

import torch
from hiprune.models.clip_layer import halves, layers_of
from torch import Tensor, nn

from hiprune.config import FAMILIES
from scripts.efficiency.architectures import Architecture
from scripts.efficiency.configs import clip_config, llama_config, own_config
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

OUTPUT = {"llava": -2, "llava_next": -2, "internvl": -1, "llava_onevision": -1}  # hidden state


class ViewCounts(LanguageModel):
    """A :class:`scripts.efficiency.flops.count.Counts` of one architecture and picture."""

    def __init__(self, architecture: Architecture, picture: Picture) -> None:
        with torch.device("meta"):
            build = _own if architecture.needs_own else _llava
            vision, self.mlp, decoder, head = build(architecture)
        super().__init__(decoder, head)
        self.picture, self.width = picture, architecture.vision.width
        self.heads, self.side = architecture.vision.heads, architecture.vision.image_size
        self.embeddings = getattr(vision, "vision_model", vision).embeddings  # of 4.37 and 5
        self.extra = 0 if architecture.family == "llava_onevision" else 1  # CLS
        encoder = layers_of(vision)
        # Hidden state k is the output of layer k: 23 of 24 for -2.
        self.output_layer = OUTPUT[architecture.family] % (len(encoder) + 1)
        object_layer = FAMILIES[architecture.family].layer_of(len(encoder))
        self.scored_layers = {object_layer, self.output_layer}
        self.all_layers = len(encoder)
        self.layer = _encoder_layer(one_of(encoder))  # all have the same shapes: counted once

    def tower(self) -> Work:
        return self._patches + self._layer_work * self.all_layers

    def pruned_tower(self, kept: int) -> Work:
        patches = kept // self.picture.views * self.picture.merge**2
        last = OutputLayer(self.layer.module, patches)
        return self._patches + self._layer_work * (self.output_layer - 1) + self._on_all(last)

    def scoring_pass(self) -> Work:
        size = (self.picture.views, self.heads, self._length, self.width // self.heads)
        return count(Logits(), meta(*size), meta(*size)) * len(self.scored_layers)

    def projector(self, tokens: int) -> Work:
        return count(self.mlp, meta(1, tokens, self.picture.merge**2 * self.width))

    @property
    def _length(self) -> int:
        return self.picture.rows * self.picture.columns + self.extra

    @cached_property
    def _patches(self) -> Work:
        # torch cannot trace a convolution on the meta device. It is a few MB of weights that hold
        # nothing; one view is counted, and multiplied.
        found = (each for each in self.embeddings.modules() if isinstance(each, nn.Conv2d))
        convolution = next(found).to_empty(device="cpu")
        return count(convolution, torch.zeros(1, 3, self.side, self.side)) * self.picture.views

    @cached_property
    def _layer_work(self) -> Work:
        return self._on_all(self.layer)

    def _on_all(self, layer: nn.Module) -> Work:
        return count(layer, meta(self.picture.views, self._length, self.width))


class OutputLayer(nn.Module):
    """An encoder layer, run as HiPrune runs the output layer, by its own code: (V, E+N, C_v).

    Args:
        layer: of transformers' CLIP, SigLIP or InternViT.
        kept: patches of each view that go on. Which ones changes no count: the first.
    """

    def __init__(self, layer: Any, kept: int) -> None:
        super().__init__()
        self.layer = layer
        self.kept = kept

    def forward(self, hidden: Tensor) -> Tensor:
        _, rest = halves(self.layer, hidden, None)
        places = torch.arange(self.kept, device=hidden.device).expand(len(hidden), -1)
        return rest(slice(None), places)  # (V, N'/V, C_v); a token of InternVL is 4 of them


def _own(architecture: Architecture) -> tuple[nn.Module, nn.Module, nn.Module, nn.Linear]:
    """Tower, projector, decoder and lm_head of transformers' own model."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_config(own_config(architecture))
    inner = model.model
    return inner.vision_tower, inner.multi_modal_projector, inner.language_model, model.lm_head


def _llava(architecture: Architecture) -> tuple[nn.Module, nn.Module, nn.Module, nn.Linear]:
    """The same of LLaVA's, whose parts transformers 4.37 has, too."""
    from transformers import CLIPVisionModel, LlamaForCausalLM, LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    config = LlavaConfig(
        vision_config=clip_config(architecture.vision),
        text_config=llama_config(architecture.text),
        vision_feature_layer=-2,
    )
    llm = LlamaForCausalLM(config.text_config)
    vision, projector = CLIPVisionModel(config.vision_config), LlavaMultiModalProjector(config)
    return vision, projector, llm.model, llm.lm_head


def _encoder_layer(layer: nn.Module) -> Call:
    """As transformers 4.37 and 5 call it: without masks, which 4.37 has no defaults for."""
    masks = ("attention_mask", "causal_attention_mask")
    names = inspect.signature(layer.forward).parameters
    return Call(layer, **{mask: None for mask in masks if mask in names})
