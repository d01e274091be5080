"""received_attention: queries and keys -> how much attention each token receives.

The work is one sum over the columns of softmax(Q K^T), in float32 and without the N x N map: block
by block here, by a Triton kernel (scores_triton.py) on a GPU.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from hiprune.errors import HiPruneError
from hiprune.triton_support import has_kernel

# Attention logits held at once, in elements. Bounds the working memory of a layer whatever its N:
# on a CPU by what its cache holds, elsewhere (256 MB) by few launches.
BLOCK_ELEMENTS = 1 << 20
BLOCK_ELEMENTS_ACCELERATOR = 1 << 26


@torch.no_grad()  # scores choose tokens; a gradient would hold every block of the map
def received_attention(
    query: Tensor, key: Tensor, scale: float | None = None, logsumexp: Tensor | None = None
) -> Tensor:
    """Attention that each token receives, averaged over heads and queries (paper, Eq. of A).

    The score of token j is the mean over heads h and queries n of
    softmax(Q K^T * scale)[h, n, j]; the paper's sum over queries ranks the same. Computed in
    float32: the N x N map is never held. Equal input gives equal bits.

    Args:
        query: (B, H, N_q, D), any floating dtype.
        key: (B, H, N, D), like ``query``.
        scale: factor of the logits; 1 / sqrt(D) unless given.
        logsumexp: (B, H, N_q) log of the sum of exp(logits * scale) of each query, where the
            attention kernel has given it; saves one of the two passes over Q K^T on a GPU.

    Returns:
        (B, N) float32. Each row sums to 1.

    Raises:
        HiPruneError: shapes that do not fit each other.
    """
    _check(query, key)
    if logsumexp is not None and logsumexp.shape != query.shape[:3]:
        raise HiPruneError(
            f"logsumexp: shape {tuple(logsumexp.shape)}, expected (B, H, N_q), "
            f"{tuple(query.shape[:3])}"
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if logsumexp is not None:
        logsumexp = logsumexp.to(query.device)
    if has_kernel(query):
        from hiprune.scores_triton import column_sums

        sums = column_sums(query, key, scale, logsumexp=logsumexp)
    else:
        sums = _column_sums(query, key, scale, logsumexp)
    return sums.mean(dim=1) / query.shape[2]  # (B, H, N) -> (B, N)


@torch.no_grad()
def received_attention_packed(
    query: Tensor, key: Tensor, cu_seqlens: Tensor, scale: float | None = None
) -> Tensor:
    """Attention that each token of packed segments receives from its own segment.

    A segment (an image of several, a window) attends to itself alone. The score is the mean over
    heads of the *sum* over the segment's queries, so that tokens of windows of different sizes
    compare as they do under one N x N map with the windows as its mask; and it does not depend on
    what else is packed.

    Args:
        query, key: (H, N, D), any floating dtype.
        cu_seqlens: (S + 1,) integers from 0 to N, where the segments begin and the last one ends.
        scale: as of :func:`received_attention`.

    Returns:
        (N,) float32.
    """
    _check(query[None], key[None])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if has_kernel(query):
        from hiprune.scores_triton import column_sums

        # Nothing of cu_seqlens is read on the host, which would have to wait for the device.
        bounds = cu_seqlens.to(query.device) if len(cu_seqlens) > 2 else None
        return column_sums(query[None], key[None], scale, cu_seqlens=bounds)[0].mean(dim=0)
    starts: dict[int, list[int]] = {}
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != query.shape[1] or sorted(bounds) != bounds:
        raise HiPruneError(
            f"cu_seqlens: {bounds}; expected ascending numbers from 0 to N = {query.shape[1]}"
        )
    for start, stop in itertools.pairwise(bounds):
        starts.setdefault(stop - start, []).append(start)
    starts.pop(0, None)
    score = query.new_empty(query.shape[1], dtype=torch.float32)
    if starts == {query.shape[1]: [0]}:  # one segment: no copy of the queries and keys
        return _column_sums(query[None], key[None], scale)[0].mean(dim=0)
    for length, firsts in starts.items():
        # All segments of one length at once: windows are many and mostly equal.
        places = torch.tensor(firsts).unsqueeze(1) + torch.arange(length)  # (S, L)
        places = places.flatten().to(query.device)
        parts = (x[:, places].unflatten(1, (-1, length)).transpose(0, 1) for x in (query, key))
        found = _column_sums(*parts, scale)  # (S, H, L, D) x 2 -> (S, H, L)
        score[places] = found.mean(dim=1).flatten()
    return score


def received_attention_reference(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """The definition, in float64 and with the whole map: the oracle of the fast paths."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    attention = (query.double() @ key.double().transpose(-1, -2) * scale).softmax(dim=-1)
    return attention.mean(dim=(1, 2))  # (B, H, N_q, N) -> (B, N)


def _column_sums(
    query: Tensor, key: Tensor, scale: float, logsumexp: Tensor | None = None
) -> Tensor:
    """(B, H, N_q, D), (B, H, N, D) -> (B, H, N) float32, sums over the queries."""
    n_query, tokens = query.shape[2], key.shape[2]
    query = (query.float() * scale).flatten(0, 1)  # (B*H, N_q, D)
    key_t = key.float().flatten(0, 1).transpose(1, 2)  # (B*H, D, N)
    at_once = BLOCK_ELEMENTS if key.device.type == "cpu" else BLOCK_ELEMENTS_ACCELERATOR
    # Whole heads where they fit, else a head's queries block by block: long products are quickest.
    heads = max(1, at_once // (n_query * tokens))
    rows = max(1, at_once // (heads * tokens))
    sums = key.new_zeros(len(query), tokens, dtype=torch.float32)
    with torch.autocast(key.device.type, enabled=False):  # it would multiply in half precision
        for head in range(0, len(query), heads):
            part = slice(head, head + heads)
            for row in range(0, n_query, rows):
                logits = query[part, row : row + rows] @ key_t[part]  # (heads, rows, N)
                if logsumexp is None:
                    attention = logits.softmax(dim=-1)
                else:
                    known = logsumexp.flatten(0, 1)[part, row : row + rows].float()
                    attention = logits.sub_(known.unsqueeze(-1)).exp_()
                sums[part] += attention.sum(dim=1)
    return sums.view(*key.shape[:2], tokens)


def _check(query: Tensor, key: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key)):
        if tensor.ndim != 4 or 0 in tensor.shape or not tensor.is_floating_point():
            raise HiPruneError(
                f"{name}: {tensor.dtype} of shape {tuple(tensor.shape)}, expected a floating "
                "tensor (B, H, N, D) without an empty dimension"
            )
    if (*query.shape[:2], query.shape[3]) != (*key.shape[:2], key.shape[3]):
        raise HiPruneError(
            f"key: shape {tuple(key.shape)}, expected that of query, {tuple(query.shape)}, but "
            "for the number of tokens"
        )
    if (key.device, key.dtype) != (query.device, query.dtype):
        raise HiPruneError(
            f"key: {key.dtype} on {key.device}, expected query's, {query.dtype} on {query.device}"
        )
