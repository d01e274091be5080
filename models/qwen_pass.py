"""One run of a patched tower of Qwen's: its windows, the choice of tokens, what is kept."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from hiprune.models.views import flat_indices
from hiprune.models.words import words_of
from torch import Tensor

from hiprune.capture import Recording, observed
from hiprune.handle import STATE
from hiprune.methods import Images
from hiprune.selection import TokenSelection


def windows(visual: Any, grid_thw: Tensor) -> dict[str, Tensor]:
    """Which tokens, in raster order, the tower's windows hold, and where each window ends.

    Empty for a tower without windows, whose tokens lie in raster order.
    """
    if not hasattr(visual, "fullatt_block_indexes"):
        return {}
    from transformers.vision_utils import get_vision_window_index

    index, ends = get_vision_window_index(
        grid_thw, visual.spatial_merge_size, visual.window_size, visual.patch_size
    )
    return {"window_index": index, "cu_window_seqlens": ends}


class Pass:
    """What one run of the tower works with.

    Attributes:
        selections: one an image or video; its rows are the frames (one for an image), its tokens
            merged tokens in raster order.
        windows: the order of its windows, as the tower's own arguments.
        raster: (N,) place in the tower of each token in raster order.
        kept: (sum of N',) those of the kept ones, once they are chosen.
        states: of DeepStack, in order: its merger, and the (4 N, C_v) states that it gets.
        planes: (sum of N', C) what DeepStack's mergers make of the kept tokens, in raster order.
    """

    def __init__(
        self,
        tower: Any,
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
        tokens = [height * width // self.merge**2 for _, height, width in self.grids]
        if self.windows:
            # Ahead of the first block: the index comes from the host, and copying it waits.
            self.raster = torch.argsort(self.windows["window_index"].to(device))
        else:
            total = sum(each[0] * n for each, n in zip(self.grids, tokens, strict=True))
            self.raster = torch.arange(total, device=device)
        self.kept: Tensor | None = None
        self.states: list[tuple[Callable, Tensor]] = []
        self.planes: list[Tensor] = []
        self.gradients = torch.is_grad_enabled()
        # A last block with windows (no released model has one) runs as it is: how many tokens
        # each of its windows keeps, only the device knows.
        full = not self.windows or tower.output_layer - 1 in visual.fullatt_block_indexes
        self.drops = full and not looked_at and any(tower.kept(n) < n for n in tokens)

    def cuts_short(self, block: Any, hidden: Tensor) -> bool:
        """May the rest of the last block run for kept tokens alone?"""
        if not self.drops or self.tower.reads_tokens or observed(block):
            return False
        # Known since the pass began: a checkpointed block runs without gradients at first.
        return not self.gradients or not (
            hidden.requires_grad or any(weight.requires_grad for weight in block.parameters())
        )

    def choose(self, device: torch.device, projected: Tensor | None = None) -> None:
        """What patches scored -> ``selections``, and where the kept tokens lie.

        Args:
            projected: (N, C) merged tokens, in window order as the scores are.
        """
        scores, tower = self.recording.found(), self.tower
        raster = self.raster.to(device)
        needed = {
            # 4 consecutive patches are one token: their mean, in raster order
            need: scores[number].to(device).view(-1, self.merge**2).mean(dim=1)[raster]
            for need, number in tower.scored.items()
        }
        for need in {"projected", "image_embeds"} & set(tower.method.needs):
            needed[need] = projected[raster]  # text is compared with them as they are
        start = 0
        for frames, height, width in self.grids:
            columns = width // self.merge  # c
            tokens = height // self.merge * columns  # N of a frame
            part = slice(start, start := start + frames * tokens)
            budget = min(tower.config.budget(tokens), tokens)
            images = Images(frames, tokens, columns, budget, device)
            own = {need: x[part].unflatten(0, (frames, tokens)) for need, x in needed.items()}
            if tower.reads_text:
                words = words_of(len(self.selections), tower.method.name)
                own["text_embeds"] = words.to(device)
            self.selections.append(tower.method(images, **own))
        self.kept = raster[flat_indices(self.selections)]

    def take(self, hidden: Tensor) -> Tensor:
        """(4 N, C_v) in the tower's order -> (4 sum of N', C_v), the kept in raster order."""
        unit = self.merge**2
        if len(hidden) != unit * len(self.raster):
            return hidden  # what comes after a last block that was cut short holds these alone
        groups = hidden.view(-1, unit, hidden.shape[-1])  # (N, 4, C_v)
        return groups[self.kept.to(hidden.device)].flatten(0, 1)


PASS: ContextVar[Pass | None] = ContextVar("hiprune_merged_pass", default=None)


def pass_of(module: Any) -> Pass | None:
    """The pass that runs, if it is one of this module's tower."""
    found = PASS.get()
    return found if found is not None and found.tower is vars(module)[STATE] else None
