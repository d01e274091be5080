"""VisPruner: the most attended by CLS, and of the others those that differ most among themselves.

After Theia-4869/VisPruner (ICCV 2025, arXiv:2412.01818). The release serves only budgets that leave
an even number of others; ours all. LLaVA-NeXT: view by view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiprune.methods.base import Images, Method, kept
from hiprune.methods.settings import number
from hiprune.methods.similarity import cosines
from hiprune.selection import TokenSelection, ranks

A_ROUND = 8  # tokens that one round takes away


@dataclass
class VisPruner(Method):
    """``important_ratio``: share r of the budget that goes to the most attended."""

    name: ClassVar = "vispruner"
    needs: ClassVar = ("features", "cls_attention")
    important_ratio: float = number(0.5, 0, 1)

    def choose(self, images: Images, features: Tensor, cls_attention: Tensor) -> TokenSelection:
        important = int(images.budget * self.important_ratio)  # I
        diverse = images.budget - important  # D
        order, _ = ranks(cls_attention.float().mean(dim=1))  # (B, N), most attended first
        pool = order[:, important:]
        similarity = cosines(features).nan_to_num(nan=0.0)  # (B, N, N)
        first = images.tokens * torch.arange(images.batch, device=order.device).unsqueeze(1)
        never = torch.full_like(similarity[:, :1], float("-inf"))  # (B, 1, N)
        while 0 < diverse < pool.shape[1]:
            take = min(A_ROUND, pool.shape[1] - diverse)
            even, odd = pool[:, 0::2], pool[:, 1::2]
            # Whole rows, and what is no odd one's masked: quicker than to pick the odd columns.
            found = similarity.flatten(0, 1)[(first + even).flatten()].unflatten(0, even.shape)
            found += never.scatter(2, odd.unsqueeze(1), 0.0)  # (B, even, N)
            redundant, _ = ranks(found.amax(dim=2))  # the most redundant first
            # What stays of the even ones stays in this order: it pairs them in the next round.
            pool = torch.cat([even.gather(1, redundant[:, take:]), odd], dim=1)
        return kept(torch.cat([order[:, :important], pool[:, :diverse]], dim=1), images)
