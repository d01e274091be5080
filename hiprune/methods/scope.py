"""SCOPE: greedily the token that adds most to what the kept ones cover, times its CLS attention.

After kinredon/SCOPE (NeurIPS 2025, arXiv:2510.24214), with its choices and in fewer steps: what a
token adds only falls as others are kept, so what it added once bounds what it adds now, and only
tokens with a bound above the best are looked at again (lazy greedy, Minoux 1978).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiprune.methods.base import Images, Method, kept
from hiprune.methods.settings import number
from hiprune.methods.similarity import best, cosines, gather, row
from hiprune.selection import TokenSelection

A_LOOK = 32  # tokens at first; twice as many each time that these do not settle a step
NEVER = float("-inf")


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
        # (B, N) no score is above: nor 0 below, to which a negative one (of no softmax) would rise.
        bound = worth(similarity, covered, salience).clamp(min=0)
        order = []
        for _ in range(images.budget):
            scores = torch.full_like(bound, NEVER)  # of those that have been looked at
            others = bound.clone()
            look = A_LOOK
            while (scores.amax(dim=1) <= others.amax(dim=1)).any():
                at = others.topk(min(look, images.tokens), dim=1).indices  # (B, n)
                found = worth(gather(similarity, at), covered, salience.gather(1, at))
                scores = scores.scatter(1, at, found).masked_fill(chosen, NEVER)
                others.scatter_(1, at, NEVER)
                look *= 2
            bound = torch.where(scores > NEVER, scores.clamp(min=0), bound)
            order.append(best(scores, chosen))
            bound.masked_fill_(chosen, NEVER)
            covered = torch.maximum(covered, row(similarity, order[-1]))
        return kept(torch.cat(order, dim=1), images)


def worth(similarity: Tensor, covered: Tensor, salience: Tensor) -> Tensor:
    """(B, n, N) to all tokens, what of these is covered (B, N), (B, n) -> scores (B, n), no NaN."""
    gain = (similarity - covered.unsqueeze(1)).relu_().sum(dim=2)
    return (gain * salience).nan_to_num(nan=torch.finfo(gain.dtype).min)
