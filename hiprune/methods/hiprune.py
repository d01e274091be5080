"""HiPrune: anchors, buffers and registers; and the paper's ablation without registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiprune.methods.base import Images, Method
from hiprune.methods.settings import choice, flag, number
from hiprune.neighbours import NEIGHBORHOODS, SHAPES, neighbours
from hiprune.selection import TokenSelection, ranks, select_tokens

DEFAULT_ALPHA = 0.1


@dataclass
class HiPrune(Method):
    """The settings are HiPruneConfig's. With score="cls" both scores are of CLS's attention."""

    name: ClassVar = "hiprune"
    shared: ClassVar = ("alpha", "score", "buffer", "neighborhood", "registers")
    needs: ClassVar = ("object_scores", "output_scores")
    alpha: float = number(DEFAULT_ALPHA, 0, 1)
    score: str = choice("global", "cls")
    buffer: str = choice(*SHAPES)
    neighborhood: str = choice(*NEIGHBORHOODS)
    registers: bool = flag(True)

    def choose(
        self, images: Images, object_scores: Tensor, output_scores: Tensor
    ) -> TokenSelection:
        if not self.registers:
            return self._without_registers(images, object_scores)
        return select_tokens(
            object_scores,
            output_scores,
            columns=images.columns,
            budget=images.budget,
            alpha=self.alpha,
            buffer=self.buffer,
            neighborhood=self.neighborhood,
        )

    def _without_registers(self, images: Images, object_scores: Tensor) -> TokenSelection:
        """Anchors with their buffers, most attended first, until the budget is full (Table 6b)."""
        tokens = images.tokens  # N
        order, rank = ranks(object_scores)  # (B, N) each
        near = neighbours(order, tokens, images.columns, self.buffer, self.neighborhood)  # (B, k N)
        # Each token comes in with the first anchor that it is, or is a neighbour of: at that one's
        # turn, and then the anchor itself first.
        turns = torch.arange(tokens, device=near.device).repeat(near.shape[1] // tokens)
        turn = rank.scatter_reduce(1, near, turns.expand_as(near), "amin")  # (B, N)
        key = turn * (tokens + 1) + torch.where(turn == rank, 0, 1 + rank)
        kept = key.argsort(dim=1)[:, : images.budget]  # (B, N'); keys are distinct
        keep = torch.zeros_like(rank, dtype=torch.bool).scatter(1, kept, True)
        last = turn.masked_fill(~keep, -1).amax(dim=1, keepdim=True)  # the last anchor's turn
        anchor = keep & (rank <= last)
        return TokenSelection(
            anchor=anchor,
            buffer=keep & ~anchor,
            register=torch.zeros_like(keep),
            keep=keep,
            indices=kept.sort(dim=1).values,
        )
