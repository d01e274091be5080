"""Cosines, and greedy choices step by step: what several methods are made of. All in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """(..., C) -> (..., C) float32 of length 1. Zero stays zero (the released codes have NaN)."""
    x = x.float()
    length = x.norm(dim=-1, keepdim=True)
    return x / torch.where(length == 0, 1, length)


def cosines(x: Tensor) -> Tensor:
    """(B, N, C) -> (B, N, N) float32 cosines of all pairs."""
    x = unit(x)
    return x @ x.mT


def best(scores: Tensor, chosen: Tensor) -> Tensor:
    """(B, N) scores and what is chosen already, bool -> (B, 1) the highest other, which joins it.

    Equal scores: the lowest index wins. NaN comes last.
    """
    lowest = torch.finfo(scores.dtype).min
    scores = scores.nan_to_num(nan=lowest, neginf=lowest).masked_fill(chosen, float("-inf"))
    found = scores.argmax(dim=1, keepdim=True)
    chosen.scatter_(1, found, True)
    return found


def gather(x: Tensor, index: Tensor) -> Tensor:
    """(B, N, C) and (B, n) -> (B, n, C)."""
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))


def row(matrix: Tensor, of: Tensor) -> Tensor:
    """(B, N, M) and (B, 1) -> (B, M), the row of each."""
    return gather(matrix, of).squeeze(1)
