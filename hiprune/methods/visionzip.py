"""VisionZip: CLS and what it attends to most, and the rest merged into a few contextual tokens.

After dvlab-research/VisionZip (CVPR 2025, arXiv:2412.04467).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiprune.errors import HiPruneError
from hiprune.methods.base import Images, Method, kept
from hiprune.methods.settings import count
from hiprune.methods.similarity import gather, unit
from hiprune.selection import TokenSelection, ranks

# N' -> C': how the release and those that ran it share budgets out.
CONTEXTUAL = {192: 30, 128: 20, 64: 10, 48: 8, 32: 6, 16: 4}


@dataclass
class VisionZip(Method):
    """N' = D + C': D dominant tokens, of which CLS is one, and C' contextual ones.

    0 for either: what the other leaves, or for both the release's share, 10 of 64 contextual.
    """

    name: ClassVar = "visionzip"
    needs: ClassVar = ("cls_attention", "keys", "hidden")
    merges: ClassVar = True
    dominant: int = count(0, "tokens, CLS counted; 0: what contextual leaves")
    contextual: int = count(0, "tokens; 0: the release's share")

    def split(self, budget: int) -> tuple[int, int]:
        """(D, C')."""
        share = min(CONTEXTUAL.get(budget, round(budget * 10 / 64)) or 1, budget - 1)
        contextual = self.contextual or (budget - self.dominant if self.dominant else share)
        dominant = budget - contextual
        if dominant < 1 or contextual < 0 or self.dominant not in (0, dominant):
            raise HiPruneError(
                f"dominant={self.dominant}, contextual={self.contextual} with a budget of "
                f"{budget} tokens: expected their sum to be the budget, and dominant at least 1"
            )
        return dominant, contextual

    def choose(
        self, images: Images, cls_attention: Tensor, keys: Tensor, hidden: Tensor
    ) -> TokenSelection:
        dominant, contextual = self.split(images.budget)
        order, _ = ranks(cls_attention.detach().float().sum(dim=1))  # (B, N)
        chosen, rest = order[:, : dominant - 1], order[:, dominant - 1 :].sort(dim=1).values
        hidden = hidden.float()
        merged, tokens = hidden[:, :1], hidden[:, 1:]  # CLS; (B, N, C)
        if contextual:
            # Every step-th of the rest is a target; (n,) targets first, then the others.
            step, places = (
                rest.shape[1] // contextual,
                torch.arange(rest.shape[1], device=rest.device),
            )
            other = (places % step > 0) | (places >= contextual * step)
            split = rest[:, other.int().argsort(stable=True)].tensor_split([contextual], dim=1)
            target, other = split  # (B, C') and (B, n - C')
            metric = unit(keys.detach().float().mean(dim=1)[:, 1:])  # (B, N, d)
            near = (gather(metric, other) @ gather(metric, target).mT).argmax(dim=2)
            numbers = torch.arange(contextual, device=near.device).view(1, -1, 1)
            member = (near.unsqueeze(1) == numbers).float()  # (B, C', n - C')
            mean = member @ gather(tokens, other) / member.sum(dim=2, keepdim=True).clamp(min=1)
            merged = torch.cat([merged, gather(tokens, target) + mean], dim=1)  # (B, 1 + C', C)
        return kept(chosen, images, merged)
