"""Qwen's vision towers, whose tokens are 2 x 2 patches: their scores, and the rest for kept tokens.

Qwen2-VL's, Qwen2.5-VL's (most of whose blocks attend within windows) and Qwen3-VL's (DeepStack:
the states of three blocks become one more feature a token each).

Modifications, on one instance, until the handle's remove() and only within the passes of a patched
model: block l and the last one are scored; once the scores are known, what follows runs on the kept
tokens alone (a merged token is 4 patches; groups are kept whole), so that the tower's
``last_hidden_state`` holds these, in raster order. DeepStack's mergers wait until then. The last
block's own rest is run so where nobody can see it: without gradients, without hooks of others,
without attentions asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hiprune.models.prompt import ImageSpan
from hiprune.models.qwen_pass import PASS, Pass, pass_of, windows
from hiprune.models.words import PromptEmbeds
from torch import Tensor

from hiprune.capture import AttentionCapture, ScoredLayer, captured
from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import Part, PruneHandle
from hiprune.methods import method_of
from hiprune.scores import received_attention_packed


def rotated(attention: Any, qkv: Tensor, position_embeddings: Any) -> tuple[Tensor, ...]:
    """(4 N, 3 C_v) -> queries and keys, rotated, and values, (H, 4 N, D) each."""
    from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen  # the others do the same

    query, key, value = qkv.unflatten(-1, (3, attention.num_heads, -1)).unbind(1)  # (4 N, H, D)
    query, key = qwen.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    return query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)


def scored_layer(attention: Any) -> ScoredLayer:
    """A block's attention: queries and keys out of its qkv, rotated, per segment."""
    return ScoredLayer(attention, ("qkv",), _score)


def _score(
    attention: Any, qkv: Tensor, *, cu_seqlens: Tensor, position_embeddings: Any, **_: Any
) -> Tensor:
    query, key, _ = rotated(attention, qkv, position_embeddings)
    return received_attention_packed(query, key, cu_seqlens, attention.scaling)


class MergedTower:
    """What is known of one patched model's tower; it holds no module."""

    def __init__(self, visual: Any, config: HiPruneConfig) -> None:
        self.output_layer = len(visual.blocks)
        if config.object_layer > self.output_layer:
            raise HiPruneError(
                f"object_layer={config.object_layer}: expected 1 to {self.output_layer}, the "
                "blocks of this model's vision tower"
            )
        if config.uses_cls:
            name = "score" if config.score == "cls" else "method"
            raise HiPruneError(
                f"{name}={getattr(config, name)!r}: this model's vision tower has no CLS token; "
                f"expected another {name}"
            )
        self.config = config
        self.method = method_of(config)
        # Layer -> the scores that the method needs of it.
        layers = {"object_scores": config.object_layer, "output_scores": self.output_layer}
        self.scored = {n: layers[n] for n in layers if n in self.method.needs}
        # Does it look at the merged tokens themselves?
        self.reads_tokens = not {"projected", "image_embeds"}.isdisjoint(self.method.needs)
        self.reads_text = "text_embeds" in self.method.needs
        self.text: PromptEmbeds | None = None  # the adapter's, where it is read
        self.capture = AttentionCapture()

    def patch(self, handle: PruneHandle, visual: Any) -> None:
        scored = sorted(set(self.scored.values()))
        layers = {n: scored_layer(visual.blocks[n - 1].attn) for n in scored}
        handle.placed(self.capture.attach(layers))
        handle.patch(visual.blocks[-1], _LastBlock, self)
        handle.patch(visual.merger, _Merger, self)
        for merger in getattr(visual, "deepstack_merger_list", ()):
            handle.patch(merger, _DeepStackMerger, self)

    def frames(self, visual: Any, grid_thw: Tensor) -> list[tuple[int, ImageSpan]]:
        """Of (n, 3) images or videos: frames of each, and N and N' of one; known before the tower
        runs.
        """
        found = []
        for frames, height, width in grid_thw.tolist():
            tokens = height * width // visual.spatial_merge_size**2
            found.append((frames, ImageSpan(tokens, self.kept(tokens))))
        return found

    def kept(self, tokens: int) -> int:
        """N' of a frame of N tokens."""
        return self.method.kept(self.config.budget(tokens), tokens)

    @contextmanager
    def passing(
        self, visual: Any, grid_thw: Tensor, device: torch.device, looked_at: bool
    ) -> Iterator[Pass]:
        """One run of the tower, whose tokens are chosen; ``looked_at``: its maps are asked for."""
        with self.capture.recording() as recording:
            token = PASS.set(Pass(self, visual, grid_thw, recording, device, looked_at))
            try:
                yield PASS.get()
            finally:
                PASS.reset(token)


class _LastBlock(Part):
    def forward(block: Any, original: Callable, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """(4 N, C_v) in window order -> (4 sum of N', C_v), the kept in raster order.

        Queries, keys and values of all, and with them the scores; the rest for kept tokens alone.
        """
        run = pass_of(block)
        if run is None or not run.cuts_short(block, hidden_states):
            return original(hidden_states, **arguments)
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden_states))
        query, key, value = rotated(attention, qkv, arguments["position_embeddings"])
        if run.tower.output_layer in run.tower.scored.values():
            found = received_attention_packed(
                query, key, arguments["cu_seqlens"], attention.scaling
            )
            run.recording.add(run.tower.output_layer, found)
        run.choose(qkv.device)

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

        ``hidden`` holds the kept tokens, or all of them where the last block ran as it is. Of a
        method that looks at merged tokens none is zero.
        """
        run = pass_of(merger)
        if run is None:
            return original(hidden)  # somebody's own call
        if run.tower.reads_tokens:
            merged = original(hidden)  # (N, C)
            run.choose(merged.device, merged)
            run.planes = [deepstack(run.take(states)) for deepstack, states in run.states]
            return merged
        if run.kept is None:
            run.choose(hidden.device)
            hidden = run.take(hidden)
        run.planes = [deepstack(run.take(states)) for deepstack, states in run.states]
        merged = original(hidden)  # (sum of N', C)
        tokens = sum(selection.keep.numel() for selection in run.selections)
        kept = run.kept.to(merged.device)
        return merged.new_zeros(tokens, merged.shape[-1]).index_copy(0, kept, merged)


class _DeepStackMerger(Part):
    def forward(merger: Any, original: Callable, hidden: Tensor) -> Tensor:
        """(4 N, C_v) -> (N, 0): it waits until the kept tokens are known."""
        run = pass_of(merger)
        if run is None:
            return original(hidden)
        run.states.append((original, hidden))
        return hidden.new_empty(len(run.raster), 0)


def maps(visual: Any, pixels: Tensor, grid_thw: Any, **inputs: Any) -> tuple[Tensor, Tensor]:
    """(blocks, frames, N) scores and (frames, N, C) merged tokens; see hiprune.figures.maps."""
    tokens, unit = _tokens(visual, grid_thw), visual.spatial_merge_size**2
    layers = {number: scored_layer(block.attn) for number, block in enumerate(visual.blocks, 1)}
    order = windows(visual, grid_thw)
    with captured(layers) as recording:
        output = visual(pixels, grid_thw, **order, **inputs)
        scores = recording.found()
    device = scores[1].device  # the blocks may lie on several
    patches = torch.stack([scores[n].to(device) for n in sorted(scores)])  # (blocks, 4 sum of N)
    merged = patches.unflatten(1, (-1, unit)).mean(dim=2)  # 4 consecutive patches are one token
    if order:
        merged = merged[:, torch.argsort(order["window_index"]).to(device)]  # raster order
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
    return height * width // visual.spatial_merge_size**2
