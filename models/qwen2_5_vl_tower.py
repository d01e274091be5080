"""Qwen2.5-VL's vision tower with HiPrune: scores of two blocks, the merger on kept tokens alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiprune.capture import AttentionCapture, ScoredLayer
from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle
from hiprune.scores import received_attention_packed
from hiprune.selector import TokenSelection, select_tokens


class PrunedTower:
    """The vision tower of one patched model.

    After a pass, ``selections`` holds one TokenSelection an image or video; its rows are the
    frames (one for an image), its tokens merged tokens in raster order.
    """

    def __init__(self, visual: Any, config: HiPruneConfig) -> None:
        if config.object_layer > len(visual.blocks):
            raise HiPruneError(
                f"object_layer={config.object_layer}: accepted is 1 to {len(visual.blocks)}, the "
                "blocks of this model's vision tower"
            )
        self.visual = visual
        self.config = config
        self.output_layer = len(visual.blocks)
        self.selections: list[TokenSelection] = []
        self._grids: list[list[int]] = []

    def patch(self, handle: PruneHandle) -> None:
        visual = self.visual
        numbers = {self.config.object_layer, self.output_layer}
        self.capture = AttentionCapture({n: _scored(visual.blocks[n - 1].attn) for n in numbers})
        handle.on_remove(self.capture.remove)
        self._forward, self._merge = visual.forward, visual.merger.forward
        self._permute = visual.permute_input_for_window_attn
        handle.replace(visual, "forward", self._wrap(self._forward))
        handle.replace(visual.merger, "forward", self.merge)
        handle.replace(visual, "permute_input_for_window_attn", self.permute)

    def _wrap(self, original: Any) -> Any:
        @functools.wraps(original)
        def forward(hidden_states: Tensor, grid_thw: Tensor, **kwargs: Any) -> Any:
            self._grids = grid_thw.tolist()  # the model reads it on the host as well
            with self.capture.recording():
                return original(hidden_states, grid_thw, **kwargs)

        return forward

    def permute(self, input_tensor: Tensor, window_index: Tensor, **kwargs: Any) -> Tensor:
        """The tower's own method; the order of its windows is noted on the way."""
        self._window_index = window_index
        return self._permute(input_tensor, window_index, **kwargs)

    def merge(self, hidden: Tensor) -> Tensor:
        """Patches (4 N, C_v) in window order -> merged tokens (N, C), zero where dropped."""
        unit = self.visual.spatial_merge_unit
        raster = torch.argsort(self._window_index.to(hidden.device))  # place of each token
        scores = {  # 4 consecutive patches are one token: their mean, in raster order
            number: score.to(hidden.device).view(-1, unit).mean(dim=1)[raster]
            for number, score in self.capture.scores().items()
        }
        self.selections = self._select(scores[self.config.object_layer], scores[self.output_layer])
        kept = raster[flat_indices(self.selections)]  # places of the kept in window order
        groups = hidden.view(-1, unit, hidden.shape[-1])[kept]  # (sum of N', 4, C_v)
        merged = self._merge(groups.flatten(0, 1))  # (sum of N', C)
        return merged.new_zeros(len(raster), merged.shape[-1]).index_copy(0, kept, merged)

    def _select(self, object_scores: Tensor, output_scores: Tensor) -> list[TokenSelection]:
        selections, start = [], 0
        for frames, height, width in self._grids:
            columns = width // self.visual.spatial_merge_size  # c
            tokens = height // self.visual.spatial_merge_size * columns  # N of a frame
            part = slice(start, start + frames * tokens)
            start = part.stop
            selections.append(
                select_tokens(
                    object_scores[part].view(frames, tokens),
                    output_scores[part].view(frames, tokens),
                    columns=columns,
                    budget=self.config.budget(tokens),
                    alpha=self.config.alpha,
                )
            )
        return selections


def flat_indices(selections: Sequence[TokenSelection]) -> Tensor:
    """(sum of N',) places of the kept tokens among those of all images, frame after frame."""
    found, start = [], 0
    for selection in selections:
        frames, tokens = selection.keep.shape
        first = start + tokens * torch.arange(frames, device=selection.indices.device)
        found.append((selection.indices + first.unsqueeze(1)).flatten())
        start += frames * tokens
    return torch.cat(found)


def _scored(attention: Any) -> ScoredLayer:
    """A Qwen2_5_VLVisionAttention: queries and keys out of its qkv, rotated, per segment."""

    def score(qkv: Tensor, *, cu_seqlens: Tensor, position_embeddings: Any, **_: Any) -> Tensor:
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

        query, key, _ = qkv.unflatten(-1, (3, attention.num_heads, -1)).unbind(1)  # (4 N, H, D)
        query, key = qwen.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        return received_attention_packed(
            query.transpose(0, 1),
            key.transpose(0, 1),
            cu_seqlens.diff().tolist(),
            attention.scaling,
        )

    return ScoredLayer(attention, (attention.qkv,), score)
