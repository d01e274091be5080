"""Evenly spaced tokens, the same ones of every image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hiprune.methods.base import Images, Method, highest
from hiprune.selection import TokenSelection


@dataclass
class Uniform(Method):
    """The tokens in the middles of N' equal parts of the flat index."""

    name: ClassVar = "uniform"

    def choose(self, images: Images) -> TokenSelection:
        tokens, budget = images.tokens, images.budget
        # Whole numbers: floor((i + 1/2) N / N'), distinct since N >= N'.
        places = torch.arange(budget, device=images.device)
        places = (2 * places + 1) * tokens // (2 * budget)
        scores = torch.zeros(images.batch, tokens, device=images.device)
        return highest(scores.index_fill_(1, places, 1.0), images)
