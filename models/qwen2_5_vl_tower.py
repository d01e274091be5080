"""Qwen2.5-VL's vision tower with HiPrune: scores of two blocks, the rest for kept tokens alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from hiprune.models.prompt import ImageSpan
from hiprune.models.qwen2_5_vl_attention import rotated, scored_layer
from torch import Tensor

from hiprune.capture import AttentionCapture
from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle
from hiprune.methods import Images, method_of
from hiprune.scores import received_attention_packed
from hiprune.selection import TokenSelection


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
        self.choose = method_of(config)
        self.output_layer = len(visual.blocks)
        self.selections: list[TokenSelection] = []
        self._grids: list[list[int]] | None = None  # of the pass that is running
        # Of that pass: (N,) place in window order of each token in raster order, and (sum of N',)
        # those of the kept ones.
        self._raster: Tensor | None = None
        self._kept: Tensor | None = None

    def patch(self, handle: PruneHandle) -> None:
        visual, output = self.visual, self.output_layer
        scored = {self.config.object_layer, output}
        if output - 1 in visual.fullatt_block_indexes:
            # A last block with windows (no released model has one) is left to run as it is: how
            # many tokens each of its windows keeps, only the device knows.
            handle.wrap_forward(visual.blocks[-1], self._wrap_last_block)
            scored -= {output}
        self.capture = AttentionCapture(
            {n: scored_layer(visual.blocks[n - 1].attn) for n in scored}
        )
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
                self._grids = self._kept = self._raster = None

        return forward

    def permute(self, input_tensor: Tensor, window_index: Tensor, **kwargs: Any) -> Tensor:
        """The tower's own method; the order of its windows is noted on the way."""
        if self._grids is not None and self._raster is None:
            # Ahead of the first block: the index comes from the host, and copying it waits.
            self._raster = torch.argsort(window_index.to(input_tensor.device))
        return self._permute(input_tensor, window_index, **kwargs)

    def _wrap_last_block(self, original: Any) -> Any:
        return functools.wraps(original)(functools.partial(self.last_block, original))

    def last_block(
        self,
        original: Any,
        hidden_states: Tensor,
        **arguments: Any,
    ) -> Tensor:
        """(4 N, C_v) in window order -> (4 sum of N', C_v), the kept in raster order.

        Queries, keys and values of all, and with them the scores; the rest for kept tokens alone.
        """
        if self._grids is None:  # somebody's own call
            return original(hidden_states, **arguments)
        block = self.visual.blocks[-1]
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden_states))
        query, key, value = rotated(attention, qkv, arguments["position_embeddings"])
        score = received_attention_packed(query, key, arguments["cu_seqlens"], attention.scaling)
        self._choose({**self.capture.scores(), self.output_layer: score})

        unit = self.visual.spatial_merge_unit
        if len(self._kept) == len(self._raster):
            # Nothing is dropped: the block as it is, so that nothing changes by a rounding either.
            hidden = original(hidden_states, **arguments)
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
            scores = self.capture.scores()
            if self.output_layer not in scores:
                raise HiPruneError(
                    f"layer {self.output_layer}: the last block's forward was replaced after "
                    "HiPrune was applied and did not run; accepted is the block that was patched"
                )
            unit = self.visual.spatial_merge_unit
            self._choose(scores)
            groups = hidden.view(-1, unit, hidden.shape[-1])  # (N, 4, C_v)
            hidden = groups[self._kept.to(hidden.device)].flatten(0, 1)
        merged = self._merge(hidden)  # (sum of N', C)
        tokens = sum(selection.keep.numel() for selection in self.selections)
        kept = self._kept.to(merged.device)
        return merged.new_zeros(tokens, merged.shape[-1]).index_copy(0, kept, merged)

    def _choose(self, scores: dict[int, Tensor]) -> None:
        """Scores of patches in window order -> ``selections``, and where the kept tokens lie."""
        device = scores[self.output_layer].device
        raster = self._raster.to(device)
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
            output = output_scores[part].view(frames, tokens)
            selections.append(
                self.choose(
                    Images.like(output, columns, self._budget(tokens)),
                    object_scores=object_scores[part].view(frames, tokens),
                    output_scores=output,
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
