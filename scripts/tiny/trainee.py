"""Trainee: a transformers model with dense heads, and how training runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from scripts.tiny.batches import PRESENT, Batch
from scripts.tiny.blocks import decoder_layer, rms_norm
from scripts.tiny.scenes import COLOURS, DRAWINGS, SHAPES, Drawing
from scripts.tiny.tokens import Prompts

COLUMNS = 12  # tokens in a row: 144 an image
WIDTH = 128
# The last matrix of what a layer adds to its input.
ADDED = ("o_proj", "out_proj", "attn.proj", "fc2", "down_proj")


class Seen(NamedTuple):
    """What a tower makes of B images.

    Attributes:
        features: (B, N, C) for the dense heads, grid after grid, each in raster order.
        embedded: (B, M, D) for the language model.
        whole: (B, C) of the image as a whole, where the tower has a class token.
    """

    features: Tensor
    embedded: Tensor
    whole: Tensor | None


class Trainee(nn.Module, ABC):
    """A model, its dense heads (dropped after training), and its forward pass for training.

    Attributes:
        model: the transformers model; what is saved.
        heads: linear classifiers of the tower's tokens, and of the whole image.
        prompts: its tokenizer and prompts.
        family: one of FAMILIES.
        grids: columns of the grids of tokens that an image has.
        drawing: of its scenes.
    """

    family: str
    grids: tuple[int, ...] = (COLUMNS,)

    def __init__(
        self, model: nn.Module, prompts: Prompts, dense_width: int, rows: bool, whole: bool
    ) -> None:
        super().__init__()
        self.model, self.prompts = model, prompts
        classes = {"shape": 1 + len(SHAPES), "colour": 1 + len(COLOURS), "centre": 2}
        if rows:
            classes |= {"row": COLUMNS, "column": COLUMNS}
        if whole:
            classes |= {"present": PRESENT}
        self.norm = nn.LayerNorm(dense_width)
        self.heads = nn.ModuleDict({k: nn.Linear(dense_width, n) for k, n in classes.items()})
        mean, std = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)

    @property
    def drawing(self) -> Drawing:
        return DRAWINGS[self.family]

    @property
    def language(self) -> nn.Module:
        return self.model.model.language_model

    @abstractmethod
    def vision(self, images: Tensor, newlines: bool = True) -> Seen:
        """(B, S, S, 3) uint8 -> what the tower makes of it; LLaVA-NeXT's rows end in newlines."""

    def normalised(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, 3, S, S), as the image processors do."""
        return torch.addcmul(self.shift, images, self.scale).permute(0, 3, 1, 2)

    @abstractmethod
    def angles(
        self, before: int, visual: int, after: int, questions: int, length: int
    ) -> tuple[Tensor, Tensor]:
        """(P + Q * T, D) x 2: cosines and sines of the language model's positions."""

    def dense(self, seen: Seen) -> dict[str, Tensor]:
        """(B, N, classes) of each head; (B, classes) of the one for the whole image."""
        features = self.norm(seen.features)
        return {
            name: head(seen.whole if name == "present" else features)
            for name, head in self.heads.items()
        }

    def answer(self, embedded: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, M, D) -> (B, Q, V) x 2: logits where the answer is due, and where the end is."""
        language = self.language
        batch_size, count, length = batch.questions.shape
        before, after = (
            language.embed_tokens(ids).expand(batch_size, -1, -1)
            for ids in (batch.before, batch.after)
        )
        questions = language.embed_tokens(batch.questions.flatten(1))
        states = torch.cat([before, embedded.to(before.dtype), after, questions], dim=1)
        visual = embedded.shape[1]
        cos, sin = self.angles(len(batch.before), visual, len(batch.after), count, length)
        prefix = states.shape[1] - count * length
        for layer in language.layers:
            states = decoder_layer(layer, states, cos, sin, prefix, length)
        states = states[:, prefix:].unflatten(1, (count, length))
        at = batch.answer_at[..., None, None] + torch.tensor([-1, 0], device=states.device)[:, None]
        states = states.gather(2, at.expand(-1, -1, -1, states.shape[-1]))  # (B, Q, 2, D)
        logits = self.model.lm_head(rms_norm(language.norm, states)).float()
        return logits[:, :, 0], logits[:, :, 1]

    def text_positions(self, start: int, questions: int, length: int, device) -> Tensor:
        """(Q * T,) positions of the questions, each of which goes on at ``start``."""
        return torch.arange(start, start + length, device=device).repeat(questions)


def initialise(model: nn.Module) -> None:
    """Normal weights of 1 / sqrt(inputs); what a layer adds to its input begins small."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            inputs = prod(module.weight.shape[1:])
            gain = 0.3 if name.endswith(ADDED) else 1.0
            nn.init.normal_(module.weight, std=gain * inputs**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
