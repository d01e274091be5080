"""A picture and a selection to draw."""

from __future__ import annotations

import torch
from PIL import Image

from hiprune import TokenSelection, select_tokens

SIZE = (60, 40)
GREY = Image.new("RGB", SIZE, (150, 150, 150))


def chosen(views: int, columns: int, seed: int = 0) -> TokenSelection:
    noise = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, views, columns**2, generator=noise)
    budget = columns**2 // 2
    return select_tokens(*scores, columns=columns, budget=budget, alpha=0.4)
