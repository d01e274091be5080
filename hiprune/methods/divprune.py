"""DivPrune: the tokens whose least distance among each other is greatest, chosen greedily.

After CVPR 2025, arXiv:2503.02175 (vbdi/divprune), from its description. Where fewer features differ
than tokens are to be kept, the release keeps some twice; ours goes on with others. LLaVA-NeXT: view
by view, where the release treats the packed image as one set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiprune.methods.base import Images, Method, kept
from hiprune.methods.similarity import best, cosines, row
from hiprune.selection import TokenSelection


@dataclass
class DivPrune(Method):
    name: ClassVar = "divprune"
    needs: ClassVar = ("projected",)

    def choose(self, images: Images, projected: Tensor) -> TokenSelection:
        distance = 1 - cosines(projected)  # (B, N, N)
        # The first: the one farthest from its nearest other (the nearest of all is itself).
        scores = distance.kthvalue(min(2, images.tokens), dim=1).values  # (B, N)
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        nearest = torch.full_like(scores, float("inf"))  # (B, N) distance to what is chosen
        order = []
        for _ in range(images.budget):
            order.append(best(scores, chosen))
            scores = nearest = torch.minimum(nearest, row(distance, order[-1]))
        return kept(torch.cat(order, dim=1), images)
