"""QwenCounts: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, counted with fvcore on transformers' own modules.

Patch embedding, vision blocks with full and (Qwen2.5-VL) with windowed attention, merger and
(Qwen3-VL) DeepStack's mergers, decoder layers and lm_head, built from the configuration on the meta
device: without weights.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiprune.config import FAMILIES
from scripts.efficiency.architectures import Architecture
from scripts.efficiency.configs import qwen_config
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


class QwenCounts(LanguageModel):
    """A :class:`scripts.efficiency.flops.work.Counts` of one architecture and picture."""

    def __init__(self, architecture: Architecture, picture: Picture) -> None:
        from transformers import AutoModelForImageTextToText

        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(qwen_config(architecture))
        super().__init__(model.model.language_model, model.lm_head, axes=3)
        self.visual = model.model.visual
        self.vision = architecture.vision
        self.unit = picture.merge**2  # patches of a token
        self.patches = picture.rows * picture.columns
        self.windows = _windows(self.visual, picture)  # lengths, in patches
        blocks = len(self.visual.blocks)
        self.scored_layers = {FAMILIES[architecture.family].layer_of(blocks), blocks}

    def tower(self) -> Work:
        return self._embedding + self._blocks(range(len(self.visual.blocks)))

    def pruned_tower(self, kept: int) -> Work:
        last = len(self.visual.blocks) - 1
        output = OutputBlock(self.visual.blocks[last], kept * self.unit)
        return self._embedding + self._blocks(range(last)) + count(output, self._hidden())

    def scoring_pass(self) -> Work:
        heads = self.vision.heads
        work = Work()
        for layer in self.scored_layers:
            for length in self._segments(layer - 1):
                size = (heads, length, self.vision.width // heads)
                work += count(Logits(), meta(*size), meta(*size))
        return work

    def projector(self, tokens: int) -> Work:
        patches = tokens * self.unit
        mergers = (self.visual.merger, *getattr(self.visual, "deepstack_merger_list", ()))
        hidden = meta(patches, self.vision.width)
        return sum((count(merger, hidden) for merger in mergers), Work())

    @cached_property
    def _embedding(self) -> Work:
        # torch cannot trace a convolution on the meta device. It sees each patch by itself: one
        # is counted, of a few MB of weights that hold nothing, and multiplied.
        embed = self.visual.patch_embed.to_empty(device="cpu")
        values = 3 * embed.temporal_patch_size * self.vision.patch**2
        return count(embed, torch.zeros(1, values)) * self.patches

    def _blocks(self, numbers: range) -> Work:
        full = sum(self._is_full(number) for number in numbers)
        windowed = len(numbers) - full
        return self._full * full + (self._windowed * windowed if windowed else Work())

    def _is_full(self, number: int) -> bool:
        return not self.windows or number in self.visual.fullatt_block_indexes

    # All blocks have the same shapes (checked): one with full attention and one with windows are
    # counted, and multiplied.
    @cached_property
    def _full(self) -> Work:
        return self._block([self.patches])

    @cached_property
    def _windowed(self) -> Work:
        return self._block(self.windows)

    def _block(self, lengths: list[int]) -> Work:
        head = self.vision.width // self.vision.heads
        block = Call(
            one_of(self.visual.blocks),
            cu_seqlens=torch.tensor([0, *lengths]).cumsum(0),
            position_embeddings=(meta(self.patches, head), meta(self.patches, head)),
        )
        return count(block, self._hidden())

    def _segments(self, number: int) -> list[int]:
        """Lengths of what attends to itself alone in the block of this number, from 0."""
        return [self.patches] if self._is_full(number) else self.windows

    def _hidden(self) -> Tensor:
        return meta(self.patches, self.vision.width)


class OutputBlock(nn.Module):
    """A Qwen's vision block's own modules, run as HiPrune runs the last block: (4 N, C_v).

    Args:
        block: the vision block, with full attention.
        kept: patches that go on, 4 N'. Which ones changes no count: the first.
    """

    def __init__(self, block: Any, kept: int) -> None:
        super().__init__()
        self.block = block
        self.kept = kept

    def forward(self, hidden: Tensor) -> Tensor:
        block, attention = self.block, self.block.attn
        qkv = attention.qkv(block.norm1(hidden)).unflatten(-1, (3, attention.num_heads, -1))
        query, key, value = qkv.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)  # (1, H, 4 N, D)
        attended = F.scaled_dot_product_attention(query[:, :, : self.kept], key, value)
        hidden = attention.proj(attended.transpose(1, 2).flatten(2)[0])  # (4 N', C_v)
        return block.mlp(block.norm2(hidden))


def _windows(visual: Any, picture: Picture) -> list[int]:
    """Empty for a tower without windows."""
    if not hasattr(visual, "fullatt_block_indexes"):
        return []
    from transformers.vision_utils import get_vision_window_index

    grid = torch.tensor([[1, picture.rows, picture.columns]])
    _, ends = get_vision_window_index(
        grid, visual.spatial_merge_size, visual.window_size, visual.patch_size
    )
    return ends.diff().tolist()
