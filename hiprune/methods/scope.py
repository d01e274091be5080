"""SCOPE: greedily the token that adds most to what the kept ones cover, times its CLS attention.

After kinredon/SCOPE (NeurIPS 2025, arXiv:2510.24214).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiprune.methods.base import Images, Method, kept
from hiprune.methods.settings import number
from hiprune.methods.similarity import best, cosines, row
from hiprune.selection import TokenSelection


@dataclass
class Scope(Method):
    """``alpha``: the power of the attention; 0: coverage alone."""

    name: ClassVar = "scope"
    needs: ClassVar = ("features", "cls_attention")
    alpha: float = number(1.0, 0, 100)

    def choose(self, images: Images, features: Tensor, cls_attention: Tensor) -> TokenSelection:
        similarity = cosines(features)  # (B, N, N)
        salience = cls_attention.float().sum(dim=1) ** self.alpha  # (B, N)
        covered = torch.zeros_like(salience)  # (B, N) cosine to the nearest chosen, at least 0
        chosen = torch.zeros_like(salience, dtype=torch.bool)
        order, more = [], torch.empty_like(similarity)
        for _ in range(images.budget):
            # What token j would add to all tokens i: (B, j, i) -> (B, j)
            gain = torch.sub(similarity, covered.unsqueeze(1), out=more).relu_().sum(dim=2)
            order.append(best(gain * salience, chosen))
            covered = torch.maximum(covered, row(similarity, order[-1]))
        return kept(torch.cat(order, dim=1), images)
