"""Qwen2.5-VL's windowed vision tower: its scores, and the rest for kept tokens alone.

Modifications, on one instance, until the handle's remove() and only within the passes of a patched
model: block l and the last one are scored; once the scores are known, what follows runs on the kept
tokens alone (a merged token is 4 patches; groups are kept whole), so that the tower's
``last_hidden_state`` holds these, in raster order. The last block's own rest is run so where nobody
can see it: without gradients, without hooks of others, without attentions asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from hiprune.models.prompt import ImageSpan
from torch import Tensor

from hiprune.capture import AttentionCapture, Recording, ScoredLayer, captured, observed
from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import STATE, Part, PruneHandle
from hiprune.methods import Images, method_of
from hiprune.scores import received_attention_packed
from hiprune.selection import TokenSelection


def windows(visual: Any, grid_thw: Tensor) -> dict[str, Tensor]:
    """Which tokens, in raster order, the tower's windows hold, and where each window ends."""
    from transformers.vision_utils import get_vision_window_index

    index, ends = get_vision_window_index(
        grid_thw, visual.spatial_merge_size, visual.window_size, visual.patch_size
    )
    return {"window_index": index, "cu_window_seqlens": ends}


def rotated(attention: Any, qkv: Tensor, position_embeddings: Any) -> tuple[Tensor, ...]:
    """(4 N, 3 C_v) -> queries and keys, rotated, and values, (H, 4 N, D) each."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

    query, key, value = qkv.unflatten(-1, (3, attention.num_heads, -1)).unbind(1)  # (4 N, H, D)
    query, key = qwen.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    return query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)


def scored_layer(attention: Any) -> ScoredLayer:
    """A Qwen2_5_VLVisionAttention: queries and keys out of its qkv, rotated, per segment."""
    return ScoredLayer(attention, ("qkv",), _score)


def _score(
    attention: Any, qkv: Tensor, *, cu_seqlens: Tensor, position_embeddings: Any, **_: Any
) -> Tensor:
    query, key, _ = rotated(attention, qkv, position_embeddings)
    return received_attention_packed(query, key, cu_seqlens, attention.scaling)


class WindowedTower:
    """What is known of one patched model's tower; it holds no module."""

    def __init__(self, visual: Any, config: HiPruneConfig) -> None:
        self.output_layer = len(visual.blocks)
        if config.object_layer > self.output_layer:
            raise HiPruneError(
                f"object_layer={config.object_layer}: expected 1 to {self.output_layer}, the "
                "blocks of this model's vision tower"
            )
        if config.uses_cls:
            name = "method" if config.method == "cls" else "score"
            raise HiPruneError(
                f"{name}='cls': this model's vision tower has no CLS token; expected another {name}"
            )
        self.config = config
        self.choose = method_of(config)
        self.capture = AttentionCapture()

    def patch(self, handle: PruneHandle, visual: Any) -> None:
        scored = sorted({self.config.object_layer, self.output_layer})
        layers = {n: scored_layer(visual.blocks[n - 1].attn) for n in scored}
        handle.placed(self.capture.attach(layers))
        handle.patch(visual.blocks[-1], _LastBlock, self)
        handle.patch(visual.merger, _Merger, self)

    def spans(self, visual: Any, grid_thw: Tensor) -> list[ImageSpan]:
        """Of (n, 3) images or videos: N of all frames and N', known before the tower runs."""
        found = []
        for frames, height, width in grid_thw.tolist():
            tokens = height * width // visual.spatial_merge_unit
            found.append(ImageSpan(frames * tokens, frames * self.budget(tokens)))
        return found

    def budget(self, tokens: int) -> int:
        return min(self.config.budget(tokens), tokens)

    @contextmanager
    def passing(
        self, visual: Any, grid_thw: Tensor, device: torch.device, looked_at: bool
    ) -> Iterator[_Pass]:
        """One run of the tower, whose tokens are chosen; ``looked_at``: its maps are asked for."""
        with self.capture.recording() as recording:
            token = _PASS.set(_Pass(self, visual, grid_thw, recording, device, looked_at))
            try:
                yield _PASS.get()
            finally:
                _PASS.reset(token)


class _Pass:
    """What one run of the tower works with.

    Attributes:
        selections: one an image or video; its rows are the frames (one for an image), its tokens
            merged tokens in raster order.
        windows: the order of its windows, as the tower's own arguments.
        raster: (N,) place in window order of each token in raster order.
        kept: (sum of N',) those of the kept ones, once they are chosen.
    """

    def __init__(
        self,
        tower: WindowedTower,
        visual: Any,
        grid_thw: Tensor,
        recording: Recording,
        device: torch.device,
        looked_at: bool,
    ) -> None:
        self.tower, self.grids, self.recording = tower, grid_thw.tolist(), recording
        self.merge = visual.spatial_merge_size
        self.selections: list[TokenSelection] = []
        self.windows = windows(visual, grid_thw)
        # Ahead of the first block: the index comes from the host, and copying it waits.
        self.raster = torch.argsort(self.windows["window_index"].to(device))
        self.kept: Tensor | None = None
        self.gradients = torch.is_grad_enabled()
        # A last block with windows (no released model has one) runs as it is: how many tokens
        # each of its windows keeps, only the device knows.
        full = tower.output_layer - 1 in visual.fullatt_block_indexes
        tokens = [height * width // self.merge**2 for _, height, width in self.grids]
        self.drops = full and not looked_at and any(tower.budget(n) < n for n in tokens)

    def cuts_short(self, block: Any, hidden: Tensor) -> bool:
        """May the rest of the last block run for kept tokens alone?"""
        if not self.drops or observed(block):
            return False
        # Known since the pass began: a checkpointed block runs without gradients at first.
        return not self.gradients or not (
            hidden.requires_grad or any(weight.requires_grad for weight in block.parameters())
        )

    def choose(self) -> None:
        """Scores of patches in window order -> ``selections``, and where the kept tokens lie."""
        scores, tower = self.recording.found(), self.tower
        device = scores[tower.output_layer].device
        raster = self.raster.to(device)
        object_scores, output_scores = (
            # 4 consecutive patches are one token: their mean, in raster order
            scores[number].to(device).view(-1, self.merge**2).mean(dim=1)[raster]
            for number in (tower.config.object_layer, tower.output_layer)
        )
        start = 0
        for frames, height, width in self.grids:
            columns = width // self.merge  # c
            tokens = height // self.merge * columns  # N of a frame
            part = slice(start, start := start + frames * tokens)
            output = output_scores[part].view(frames, tokens)
            self.selections.append(
                tower.choose(
                    Images.like(output, columns, tower.budget(tokens)),
                    object_scores=object_scores[part].view(frames, tokens),
                    output_scores=output,
                )
            )
        self.kept = raster[flat_indices(self.selections)]


_PASS: ContextVar[_Pass | None] = ContextVar("hiprune_windowed_pass", default=None)


def _pass_of(module: Any) -> _Pass | None:
    """The pass that runs, if it is one of this module's tower."""
    found = _PASS.get()
    return found if found is not None and found.tower is vars(module)[STATE] else None


class _LastBlock(Part):
    def forward(block: Any, original: Callable, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """(4 N, C_v) in window order -> (4 sum of N', C_v), the kept in raster order.

        Queries, keys and values of all, and with them the scores; the rest for kept tokens alone.
        """
        run = _pass_of(block)
        if run is None or not run.cuts_short(block, hidden_states):
            return original(hidden_states, **arguments)
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden_states))
        query, key, value = rotated(attention, qkv, arguments["position_embeddings"])
        run.recording.add(
            run.tower.output_layer,
            received_attention_packed(query, key, arguments["cu_seqlens"], attention.scaling),
        )
        run.choose()

        unit = run.merge**2
        patches = run.kept.unsqueeze(1) * unit + torch.arange(unit, device=run.kept.device)
        patches = patches.flatten().to(qkv.device)  # (4 sum of N',)
        query, out, at, start = query[:, patches], [], 0, 0
        for selection in run.selections:
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


class _Merger(Part):
    def forward(merger: Any, original: Callable, hidden: Tensor) -> Tensor:
        """Patches, 4 a token -> merged tokens (N, C) in window order, zero where dropped.

        ``hidden`` holds the kept tokens, or all of them where the last block ran as it is.
        """
        run = _pass_of(merger)
        if run is None:
            return original(hidden)  # somebody's own call
        if run.kept is None:
            run.choose()
            groups = hidden.view(-1, run.merge**2, hidden.shape[-1])  # (N, 4, C_v)
            hidden = groups[run.kept.to(hidden.device)].flatten(0, 1)
        merged = original(hidden)  # (sum of N', C)
        tokens = sum(selection.keep.numel() for selection in run.selections)
        kept = run.kept.to(merged.device)
        return merged.new_zeros(tokens, merged.shape[-1]).index_copy(0, kept, merged)


def flat_indices(selections: Sequence[TokenSelection]) -> Tensor:
    """(sum of N',) places of the kept tokens among those of all images, frame after frame."""
    found, start = [], 0
    for selection in selections:
        frames, tokens = selection.keep.shape
        first = start + tokens * torch.arange(frames, device=selection.indices.device)
        found.append((selection.indices + first.unsqueeze(1)).flatten())
        start += frames * tokens
    return torch.cat(found)


def maps(visual: Any, pixels: Tensor, grid_thw: Any, **inputs: Any) -> tuple[Tensor, Tensor]:
    """(blocks, frames, N) scores and (frames, N, C) merged tokens; see hiprune.figures.maps."""
    tokens, unit = _tokens(visual, grid_thw), visual.spatial_merge_unit
    layers = {number: scored_layer(block.attn) for number, block in enumerate(visual.blocks, 1)}
    order = windows(visual, grid_thw)
    with captured(layers) as recording:
        output = visual(pixels, grid_thw, **order, **inputs)
        scores = recording.found()
    device = scores[1].device  # the blocks may lie on several
    patches = torch.stack([scores[n].to(device) for n in sorted(scores)])  # (blocks, 4 sum of N)
    # 4 consecutive patches are one token: their mean, in raster order
    raster = torch.argsort(order["window_index"]).to(device)
    merged = patches.unflatten(1, (-1, unit)).mean(dim=2)[:, raster]
    # The sum over the frame's 4 N queries is turned into the mean.
    found = merged.unflatten(1, (-1, tokens)) / (tokens * unit)
    return found, output.pooler_output.unflatten(0, (-1, tokens))


def _tokens(visual: Any, grid_thw: Any) -> int:
    """N of each frame."""
    if not isinstance(grid_thw, Tensor) or grid_thw.ndim != 2 or grid_thw.shape[1] != 3:
        found = tuple(grid_thw.shape) if isinstance(grid_thw, Tensor) else grid_thw
        raise HiPruneError(
            f"grid_thw={found}: expected a tensor (images, 3) of frames, rows and columns of "
            "patches (the processor's image_grid_thw)"
        )
    grids = {(height, width) for _, height, width in grid_thw.tolist()}
    if len(grids) != 1:
        raise HiPruneError(
            f"grid_thw: patches {sorted(grids)}; expected images of one grid, since maps are one "
            "tensor (images, tokens): give images of other grids one by one"
        )
    height, width = grids.pop()
    return height * width // visual.spatial_merge_unit
