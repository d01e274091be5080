"""Qwen2.5-VL's vision tower with HiPrune: scores of two blocks, the rest for kept tokens alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from hiprune.models.prompt import ImageSpan
from torch import Tensor

from hiprune.capture import AttentionCapture, ScoredLayer
from hiprune.chooser import TokenChooser
from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle
from hiprune.scores import received_attention_packed
from hiprune.selector import TokenSelection


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
        if config.uses_cls:
            name = "method" if config.method == "cls" else "score"
            raise HiPruneError(
                f"{name}='cls': this model's vision tower has no CLS token; accepted is another "
                f"{name}"
            )
        self.visual = visual
        self.config = config
        self.choose = TokenChooser(config)
        self.output_layer = len(visual.blocks)
        self.selections: list[TokenSelection] = []
        self._grids: list[list[int]] | None = None  # of the pass that is running
        self._kept: Tensor | None = None  # (sum of N',) of that pass, places in window order

    def patch(self, handle: PruneHandle) -> None:
        visual, output = self.visual, self.output_layer
        scored = {self.config.object_layer, output}
        if output - 1 in visual.fullatt_block_indexes:
            # A last block with windows (no released model has one) is left to run as it is: how
            # many tokens each of its windows keeps, only the device knows.
            handle.wrap_forward(visual.blocks[-1], self._wrap_last_block)
            scored -= {output}
        self.capture = AttentionCapture({n: _scored(visual.blocks[n - 1].attn) for n in scored})
        handle.on_remove(self.capture.remove)
        self._forward, self._merge = visual.forward, visual.merger.forward
        self._permute = visual.permute_input_for_window_attn
        handle.replace(visual, "forward", self._wrap(self._forward))
        handle.replace(visual.merger, "forward", self.merge)
        handle.replace(visual, "permute_input_for_window_attn", self.permute)

    def spans(self, grid_thw: Tensor) -> list[ImageSpan]:
        """Of (n, 3) images or videos: N of all frames and N', known before the tower runs."""
        found = []
        for frames, height, width in grid_thw.tolist():
            tokens = height * width // self.visual.spatial_merge_unit
            found.append(ImageSpan(frames * tokens, frames * self._budget(tokens)))
        return found

    def _budget(self, tokens: int) -> int:
        return min(self.config.budget(tokens), tokens)

    def _wrap(self, original: Any) -> Any:
        @functools.wraps(original)
        def forward(hidden_states: Tensor, grid_thw: Tensor, **kwargs: Any) -> Any:
            self._grids = grid_thw.tolist()  # the model reads it on the host as well
            try:
                with self.capture.recording():
                    return original(hidden_states, grid_thw, **kwargs)
            finally:
                self._grids = self._kept = None

        return forward

    def permute(self, input_tensor: Tensor, window_index: Tensor, **kwargs: Any) -> Tensor:
        """The tower's own method; the order of its windows is noted on the way."""
        self._window_index = window_index
        return self._permute(input_tensor, window_index, **kwargs)

    def _wrap_last_block(self, original: Any) -> Any:
        return functools.wraps(original)(functools.partial(self.last_block, original))

    def last_block(
        self,
        original: Any,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: Any,
        **others: Any,
    ) -> Tensor:
        """(4 N, C_v) in window order -> (4 sum of N', C_v), the kept in raster order.

        Queries, keys and values of all, and with them the scores; the rest for kept tokens alone.
        """
        block = self.visual.blocks[-1]
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden_states))
        query, key, value = _rotated(attention, qkv, position_embeddings)  # (H, 4 N, D)
        score = received_attention_packed(query, key, cu_seqlens, attention.scaling)
        self._choose({**self.capture.scores(), self.output_layer: score})

        unit = self.visual.spatial_merge_unit
        if len(self._kept) == len(self._window_index):
            # Nothing is dropped: the block as it is, so that nothing changes by a rounding either.
            hidden = original(
                hidden_states,
                cu_seqlens=cu_seqlens,
                position_embeddings=position_embeddings,
                **others,
            )
            return hidden.unflatten(0, (-1, unit))[self._kept.to(hidden.device)].flatten(0, 1)
        patches = self._kept.unsqueeze(1) * unit + torch.arange(unit, device=self._kept.device)
        patches = patches.flatten().to(qkv.device)  # (4 sum of N',)
        query, out, at, start = query[:, patches], [], 0, 0
        for selection in self.selections:
            frames, tokens = selection.keep.shape
            kept = selection.indices.shape[1] * unit
            for _ in range(frames):  # each attends to itself alone
                own = slice(start, start := start + tokens * unit)
                out.append(
                    torch.nn.functional.scaled_dot_product_attention(
                        query[None, :, at : at + kept],
                        key[None, :, own],
                        value[None, :, own],
                        scale=attention.scaling,
                    )[0]
                )  # (H, 4 N', D)
                at += kept
        out = torch.cat(out, dim=1).transpose(0, 1).flatten(1)  # (4 sum of N', C_v)
        hidden = hidden_states.to(qkv.device)[patches] + attention.proj(out)
        return hidden + block.mlp(block.norm2(hidden))

    def merge(self, hidden: Tensor) -> Tensor:
        """Patches, 4 a token -> merged tokens (N, C) in window order, zero where dropped.

        ``hidden`` holds the kept tokens, or all of them where the last block ran as it is.
        """
        if self._grids is None:
            return self._merge(hidden)  # somebody's own call
        if self._kept is None:
            unit = self.visual.spatial_merge_unit
            self._choose(self.capture.scores())
            groups = hidden.view(-1, unit, hidden.shape[-1])  # (N, 4, C_v)
            hidden = groups[self._kept.to(hidden.device)].flatten(0, 1)
        merged = self._merge(hidden)  # (sum of N', C)
        tokens = sum(selection.keep.numel() for selection in self.selections)
        kept = self._kept.to(merged.device)
        return merged.new_zeros(tokens, merged.shape[-1]).index_copy(0, kept, merged)

    def _choose(self, scores: dict[int, Tensor]) -> None:
        """Scores of patches in window order -> ``selections``, and where the kept tokens lie."""
        device = scores[self.output_layer].device
        raster = torch.argsort(self._window_index.to(device))  # place of each token
        object_scores, output_scores = (
            # 4 consecutive patches are one token: their mean, in raster order
            scores[number].to(device).view(-1, self.visual.spatial_merge_unit).mean(dim=1)[raster]
            for number in (self.config.object_layer, self.output_layer)
        )
        self.selections = self._select(object_scores, output_scores)
        self._kept = raster[flat_indices(self.selections)]

    def _select(self, object_scores: Tensor, output_scores: Tensor) -> list[TokenSelection]:
        selections, start = [], 0
        for frames, height, width in self._grids:
            columns = width // self.visual.spatial_merge_size  # c
            tokens = height // self.visual.spatial_merge_size * columns  # N of a frame
            part = slice(start, start + frames * tokens)
            start = part.stop
            selections.append(
                self.choose(
                    object_scores[part].view(frames, tokens),
                    output_scores[part].view(frames, tokens),
                    columns,
                    self._budget(tokens),
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


def _rotated(attention: Any, qkv: Tensor, position_embeddings: Any) -> tuple[Tensor, ...]:
    """(4 N, 3 C_v) -> queries and keys, rotated, and values, (H, 4 N, D) each."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

    query, key, value = qkv.unflatten(-1, (3, attention.num_heads, -1)).unbind(1)  # (4 N, H, D)
    query, key = qwen.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    return query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)


def _scored(attention: Any) -> ScoredLayer:
    """A Qwen2_5_VLVisionAttention: queries and keys out of its qkv, rotated, per segment."""

    def score(qkv: Tensor, *, cu_seqlens: Tensor, position_embeddings: Any, **_: Any) -> Tensor:
        query, key, _ = _rotated(attention, qkv, position_embeddings)
        return received_attention_packed(query, key, cu_seqlens, attention.scaling)

    return ScoredLayer(attention, (attention.qkv,), score)
