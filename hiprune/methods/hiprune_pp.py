"""HiPrune++: part of the budget goes to the tokens that are nearest to the prompt's words.

Version 3 of the paper, whose text leaves open what the choices below are; docs/hiprune_pp.md says
which sentence leads to which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from hiprune.methods.base import Images
from hiprune.methods.hiprune import HiPrune
from hiprune.methods.settings import choice, number
from hiprune.methods.similarity import unit
from hiprune.selection import TokenSelection, ranks


@dataclass
class HiPrunePP(HiPrune):
    """HiPrune, and then t text tokens of those that it has not chosen; these are registers too.

    Args:
        beta: share of the budget that goes to text tokens.
        count: "share", t = round(beta N'); "fifth", round(beta N' / 5).
        text_budget: "inside", HiPrune keeps N' - t tokens; "beside", N', and N' + t are kept.
        sign: "+", the tokens whose cosine to the text is greatest; "-", least.
    """

    name: ClassVar = "hiprune_pp"
    needs: ClassVar = ("object_scores", "output_scores", "image_embeds", "text_embeds")
    prefix: ClassVar = "HIPRUNE_PP_"
    beta: float = number(0.1, 0, 1, variable="HIPRUNE_BETA")
    count: str = choice("share", "fifth")
    text_budget: str = choice("inside", "beside")
    sign: str = choice("+", "-")

    def kept(self, budget: int, tokens: int) -> int:
        return min(
            budget + (self.text_tokens(budget) if self.text_budget == "beside" else 0), tokens
        )

    def text_tokens(self, budget: int) -> int:
        """t, of a budget of N'."""
        return round(self.beta * budget / (5 if self.count == "fifth" else 1))

    def choose(
        self,
        images: Images,
        object_scores: Tensor,
        output_scores: Tensor,
        image_embeds: Tensor,
        text_embeds: Tensor,
    ) -> TokenSelection:
        total = self.kept(images.budget, images.tokens)
        scored = images.budget - (
            self.text_tokens(images.budget) if self.text_budget == "inside" else 0
        )
        empty = torch.zeros_like(object_scores, dtype=torch.bool)
        if scored:
            first = super().choose(replace(images, budget=scored), object_scores, output_scores)
        else:
            first = TokenSelection(empty, empty, empty, empty, empty[:, :0].long())
        text = unit(text_embeds.float().mean(dim=0))  # (M, E) -> (E,)
        relevance = (unit(image_embeds) @ text).to(object_scores.device)  # r, (B, N)
        _, rank = ranks(relevance if self.sign == "+" else -relevance)
        # One key orders all tokens: HiPrune's come first, then the others by r.
        order = torch.where(first.keep, rank - images.tokens, rank).argsort(dim=1)[:, :total]
        keep = empty.scatter(1, order, True)
        return replace(
            first,
            register=first.register | (keep & ~first.keep),
            keep=keep,
            indices=order.sort(dim=1).values,
        )
