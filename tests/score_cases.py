"""Queries and keys to score, and the packed oracle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def heads(batch, n_heads, tokens, dim, dtype=torch.float32, seed=0) -> Tensor:
    """(B, H, N, D). Logits of some units: attention with peaks, as in a trained encoder."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(batch, n_heads, tokens, dim, generator=generator)).to(dtype)


def bounds(lengths: Sequence[int]) -> Tensor:
    """Lengths of segments -> cu_seqlens."""
    return torch.tensor([0, *lengths]).cumsum(0)


def packed_reference(query: Tensor, key: Tensor, lengths: Sequence[int]) -> Tensor:
    """received_attention_packed by one masked N x N map, in float64."""
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    segment = segment.to(query.device)
    logits = query.double() @ key.double().transpose(1, 2) * query.shape[-1] ** -0.5
    logits = logits.masked_fill(segment[:, None] != segment[None, :], -torch.inf)
    return logits.softmax(dim=-1).mean(dim=0).sum(dim=0).float()
