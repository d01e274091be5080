"""received_attention: queries and keys -> how much attention each token receives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hiprune.errors import HiPruneError

# Attention logits held at once, in elements. Bounds the working memory of a layer whatever its N:
# on a CPU by what its cache holds, elsewhere (256 MB) by few launches.
BLOCK_ELEMENTS = 1 << 19
BLOCK_ELEMENTS_ACCELERATOR = 1 << 26


def received_attention(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """Attention that each token receives, averaged over heads and queries (paper, Eq. of A).

    The score of token j is the mean over heads h and queries n of
    softmax(Q K^T * scale)[h, n, j]; the paper's sum over queries ranks the same. Computed in
    float32, block by block of queries: the N x N map is never held.

    Args:
        query: (B, H, N_q, D), any floating dtype.
        key: (B, H, N, D), like ``query``.
        scale: factor of the logits; 1 / sqrt(D) unless given.

    Returns:
        (B, N) float32. Each row sums to 1.

    Raises:
        HiPruneError: shapes that do not fit each other.
    """
    _check(query, key)
    batch, heads, n_query, dim = query.shape
    tokens = key.shape[2]
    scale = dim**-0.5 if scale is None else scale

    query = (query.float() * scale).flatten(0, 1)  # (B*H, N_q, D)
    key_t = key.float().flatten(0, 1).transpose(1, 2)  # (B*H, D, N)
    at_once = BLOCK_ELEMENTS if key.device.type == "cpu" else BLOCK_ELEMENTS_ACCELERATOR
    block = max(1, at_once // (batch * heads * tokens))
    score = key.new_zeros(batch * heads, tokens, dtype=torch.float32)
    with torch.autocast(key.device.type, enabled=False):  # it would multiply in half precision
        for start in range(0, n_query, block):
            logits = query[:, start : start + block] @ key_t  # (B*H, block, N)
            score += logits.softmax(dim=-1).sum(dim=1)
    return score.view(batch, heads, tokens).mean(dim=1) / n_query  # (B, N)


def received_attention_packed(
    query: Tensor, key: Tensor, lengths: Sequence[int], scale: float | None = None
) -> Tensor:
    """Attention that each token of packed segments receives from its own segment.

    A segment (an image of several, a window) attends to itself alone. The score is the mean over
    heads of the *sum* over the segment's queries, so that tokens of windows of different sizes
    compare as they do under one N x N map with the windows as its mask; and it does not depend on
    what else is packed.

    Args:
        query, key: (H, N, D), any floating dtype.
        lengths: of the segments, in order; they add up to N.
        scale: as of :func:`received_attention`.

    Returns:
        (N,) float32.
    """
    if sum(lengths) != query.shape[1]:
        raise HiPruneError(
            f"lengths: they add up to {sum(lengths)}, accepted is N = {query.shape[1]}"
        )
    starts: dict[int, list[int]] = {}
    start = 0
    for length in lengths:
        starts.setdefault(length, []).append(start)
        start += length
    score = query.new_empty(query.shape[1], dtype=torch.float32)
    for length, firsts in starts.items():
        if length == 0:
            continue
        # All segments of one length at once: windows are many and mostly equal.
        places = torch.tensor(firsts).unsqueeze(1) + torch.arange(length)  # (S, L)
        places = places.flatten().to(query.device)
        parts = (x[:, places].unflatten(1, (-1, length)).transpose(0, 1) for x in (query, key))
        found = received_attention(*parts, scale)  # (S, H, L, D) x 2 -> (S, L)
        score[places] = found.flatten() * length
    return score


def received_attention_reference(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """The definition, in float64 and with the whole map: the oracle of the fast path."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    attention = (query.double() @ key.double().transpose(-1, -2) * scale).softmax(dim=-1)
    return attention.mean(dim=(1, 2))  # (B, H, N_q, N) -> (B, N)


def _check(query: Tensor, key: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key)):
        if tensor.ndim != 4 or 0 in tensor.shape or not tensor.is_floating_point():
            raise HiPruneError(
                f"{name}: {tensor.dtype} of shape {tuple(tensor.shape)}, accepted is a floating "
                "tensor (B, H, N, D) without an empty dimension"
            )
    if (*query.shape[:2], query.shape[3]) != (*key.shape[:2], key.shape[3]):
        raise HiPruneError(
            f"key: shape {tuple(key.shape)}, accepted is that of query, {tuple(query.shape)}, but "
            "for the number of tokens"
        )
    if key.device != query.device:
        raise HiPruneError(f"key: on {key.device}, accepted is query's device, {query.device}")
