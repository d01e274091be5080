"""CDPruner: greedy MAP of a determinantal process, of diversity conditioned on the question.

After Theia-4869/CDPruner (NeurIPS 2025, arXiv:2506.10967). Beyond the rank of the features, or
where all tokens are equally relevant, the release keeps fewer; ours goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiprune.methods.base import Images, Method, kept
from hiprune.methods.similarity import best, cosines, row, unit
from hiprune.selection import TokenSelection

EPSILON = 1e-6  # added to relevance, as the release does
LEAST = 1e-12  # of what is left of a token that the chosen ones span


@dataclass
class CDPruner(Method):
    name: ClassVar = "cdpruner"
    needs: ClassVar = ("projected", "image_embeds", "text_embeds")

    def choose(
        self, images: Images, projected: Tensor, image_embeds: Tensor, text_embeds: Tensor
    ) -> TokenSelection:
        relevant = relevance(image_embeds, text_embeds)  # r, (B, N)
        kernel = relevant.unsqueeze(2) * cosines(projected) * relevant.unsqueeze(1)  # K, (B, N, N)
        left = kernel.diagonal(dim1=1, dim2=2).clone()  # g, (B, N)
        chosen = torch.zeros_like(left, dtype=torch.bool)
        rows = kernel.new_zeros(images.batch, images.budget, images.tokens)
        order = []
        for step in range(images.budget):
            order.append(best(left, chosen))
            earlier = rows[:, :step]  # (B, step, N)
            at = earlier.gather(2, order[-1].unsqueeze(1).expand(-1, step, -1))  # (B, step, 1)
            new = row(kernel, order[-1]) - (at * earlier).sum(dim=1)
            rows[:, step] = new / left.gather(1, order[-1]).clamp(min=LEAST).sqrt()
            left = left - rows[:, step] ** 2
        return kept(torch.cat(order, dim=1), images)


def relevance(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """r, (B, N): how far each token points away from the text, 0 to 1 over all B together.

    B are the views of one image: the release has one scale for all of them.

    The release negates the cosine where the paper prints plus: CLIP's patches point away from the
    text that tells of them.
    """
    found = -(unit(image_embeds) @ unit(text_embeds).mT).mean(dim=2)  # (B, N, M) -> (B, N)
    low, spread = found.amin(), found.amax() - found.amin()
    return (found - low + EPSILON) / torch.where(spread > 0, spread, EPSILON)
