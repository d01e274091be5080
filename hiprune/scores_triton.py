"""The GPU kernel: column sums of softmax(Q K^T) in two passes, without the N x N map.

The first pass finds each query's log-sum-exp, the second each key's sum of exp(logit - log-sum-exp)
over the queries. A program owns its queries (keys) and walks over all keys (queries) in order, so
that nothing is added atomically and equal input gives equal bits. Segments are read on the device:
each token knows where its own begins and ends, and a program walks over what its tokens need.

Exponentials are to the base 2, which the hardware has; scale and log-sum-exp are turned into it.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = math.log2(math.e)


def column_sums(
    query: Tensor,
    key: Tensor,
    scale: float,
    *,
    logsumexp: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Sum over the queries of softmax(Q K^T * scale), per head and key.

    Args:
        query: (B, H, N_q, D) float16, bfloat16 or float32; any strides.
        key: (B, H, N, D), like ``query``.
        scale: factor of the logits.
        logsumexp: (B, H, N_q) natural log-sum-exp of each query's scaled logits; the first pass
            otherwise.
        cu_seqlens: (S + 1,) bounds of segments, 0 to N; a query attends to its own segment alone
            (N_q = N). None: to all keys.

    Returns:
        (B, H, N) float32.
    """
    batch, heads, n_query, dim = query.shape
    tokens = key.shape[2]
    if scale <= 0:  # the kernel looks for each row's maximum before it scales
        query, scale = (-query, -scale) if scale < 0 else (torch.zeros_like(query), 1.0)
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    start, stop = (None, None) if cu_seqlens is None else _segments(cu_seqlens, tokens)
    sums = torch.empty(batch, heads, tokens, dtype=torch.float32, device=key.device)
    if logsumexp is None:
        lse = torch.empty(batch, heads, n_query, dtype=torch.float32, device=key.device)
    else:
        lse = (logsumexp.float() * LOG2_E).contiguous()
    main, rest = _split(dim)
    own, walked, warps, stages = _tiles(query.dtype, main + rest)
    sizes = (*query.stride()[:3], *key.stride()[:3], heads, n_query, tokens, scale * LOG2_E)
    constants = {
        "DIM": dim,
        "MAIN": main,
        "REST": rest,
        "SEGMENTS": cu_seqlens is not None,
        "OWN": own,
        "WALKED": walked,
        "num_warps": warps,
        "num_stages": stages,
    }
    with torch.cuda.device(key.device) if key.is_cuda else nullcontext():
        if logsumexp is None:
            grid = _grid(n_query, own, batch * heads)
            _row_logsumexp[grid](query, key, lse, start, stop, *sizes, **constants)
        grid = _grid(tokens, own, batch * heads)
        _column_sums[grid](query, key, lse, sums, start, stop, *sizes, **constants)
    return sums


def _grid(rows: int, own: int, heads: int) -> tuple[int]:
    """A program for each ``own`` rows of each head, one head after the other.

    In one dimension, which holds 2**31 - 1 programs: CUDA's second and third hold 65,535, fewer
    than the heads of many windows.
    """
    return (triton.cdiv(rows, own) * heads,)


def _segments(cu_seqlens: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """(S + 1,) bounds -> (N,) int32 twice: where each token's segment starts and stops."""
    bounds = cu_seqlens.to(torch.int32).contiguous()
    torch._assert_async(bounds[-1] == tokens)  # checked without waiting for it
    places = torch.arange(tokens, device=bounds.device, dtype=torch.int32)
    after = torch.bucketize(places, bounds, right=True)
    return bounds[after - 1], bounds[after]


def _split(dim: int) -> tuple[int, int]:
    """A head size as two powers of two of at least 16: 80 = 64 + 16, with no work on padding."""
    main = max(16, 1 << (dim.bit_length() - 1))
    rest = dim - main
    return main, 0 if rest <= 0 else max(16, triton.next_power_of_2(rest))


def _tiles(dtype: torch.dtype, dim: int) -> tuple[int, int, int, int]:
    """Tokens that a program owns, tokens of a step, warps and stages: what fits on the chip."""
    if dtype == torch.float32:
        return (64, 32, 4, 2) if dim <= 128 else (32, 32, 4, 2)
    return (128, 64, 4, 3) if dim <= 128 else (64, 64, 4, 2)


@triton.jit
def _mine(total, OWN: tl.constexpr):
    """The program's head and its rows, which may go beyond ``total``."""
    place = tl.program_id(0)
    tiles = tl.cdiv(total, OWN)
    return (place // tiles).to(tl.int64), place % tiles * OWN + tl.arange(0, OWN)


@triton.jit
def _load(
    base, rows, stride, total,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """(len(rows), WIDTH) columns FIRST to FIRST + WIDTH; zero beyond DIM, and beyond ``total``."""
    columns = FIRST + tl.arange(0, WIDTH)
    places = base + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    if CHECKED:
        return tl.load(places, mask=(rows < total)[:, None] & (columns < DIM)[None, :], other=0.0)
    if FIRST + WIDTH > DIM:
        return tl.load(places, mask=(columns < DIM)[None, :], other=0.0)
    return tl.load(places)


@triton.jit
def _logits(
    own, own_rest, base, rows, stride, total,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """(OWN, WALKED) products of the program's own rows with those of one step."""
    other = _load(base, rows, stride, total, 0, MAIN, DIM, CHECKED)
    logits = tl.dot(own, tl.trans(other), input_precision="ieee")
    if REST > 0:
        other = _load(base, rows, stride, total, MAIN, REST, DIM, CHECKED)
        logits = tl.dot(own_rest, tl.trans(other), logits, input_precision="ieee")
    return logits


@triton.jit
def _span(start, stop, rows, there, total, SEGMENTS: tl.constexpr):
    """First and last place that these rows attend to: each row's own, and all of theirs."""
    if SEGMENTS:
        first = tl.load(start + rows, mask=there, other=total)
        last = tl.load(stop + rows, mask=there, other=0)
    else:
        first = tl.where(there, 0, total)
        last = tl.where(there, total, 0)
    return first, last, tl.min(first, axis=0), tl.max(last, axis=0)


@triton.jit
def _inside(first, last, places):
    """(OWN, WALKED): is the place in the row's segment?"""
    return (places[None, :] >= first[:, None]) & (places[None, :] < last[:, None])


@triton.jit
def _add_exponentials(
    top, total, own, own_rest, key, first, last, step, k_row, tokens, scale,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, WALKED: tl.constexpr,
    CHECKED: tl.constexpr,
):  # fmt: skip
    """One step of pass 1: each row's maximum so far and its sum of exponentials."""
    places = step + tl.arange(0, WALKED)
    logits = _logits(own, own_rest, key, places, k_row, tokens, DIM, MAIN, REST, CHECKED)
    if CHECKED:
        logits = tl.where(_inside(first, last, places), logits, float("-inf"))
    higher = tl.maximum(top, tl.max(logits, axis=1) * scale)
    base = higher
    if CHECKED:  # a row whose segment has not begun yet: -inf - -inf would make a NaN
        base = tl.where(higher == float("-inf"), 0.0, higher)
    added = tl.sum(tl.exp2(logits * scale - base[:, None]), axis=1)
    return higher, total * tl.exp2(top - base) + added


@triton.jit
def _row_logsumexp(
    query, key, lse, start, stop,
    q_batch, q_head, q_row, k_batch, k_head, k_row, heads, n_query, tokens, scale,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, SEGMENTS: tl.constexpr,
    OWN: tl.constexpr, WALKED: tl.constexpr,
):  # fmt: skip
    """Pass 1: a program owns OWN queries of one head and walks over their keys."""
    head, rows = _mine(n_query, OWN)
    query += head // heads * q_batch + head % heads * q_head
    key += head // heads * k_batch + head % heads * k_head
    there = rows < n_query
    own = _load(query, rows, q_row, n_query, 0, MAIN, DIM, True)
    own_rest = own
    if REST > 0:
        own_rest = _load(query, rows, q_row, n_query, MAIN, REST, DIM, True)
    first, last, low, high = _span(start, stop, rows, there, tokens, SEGMENTS)

    top = tl.full([OWN], float("-inf"), tl.float32)
    total = tl.zeros([OWN], tl.float32)
    if not SEGMENTS:  # whole steps need no look at who attends to whom
        low = high // WALKED * WALKED
        for step in range(0, low, WALKED):
            top, total = _add_exponentials(
                top, total, own, own_rest, key, first, last, step, k_row, tokens, scale,
                DIM, MAIN, REST, WALKED, False,
            )  # fmt: skip
    for step in range(low, high, WALKED):
        top, total = _add_exponentials(
            top, total, own, own_rest, key, first, last, step, k_row, tokens, scale,
            DIM, MAIN, REST, WALKED, True,
        )  # fmt: skip
    tl.store(lse + head * n_query + rows, top + tl.log2(total), mask=there)


@triton.jit
def _attention(
    own, own_rest, query, lse, first, last, step, q_row, n_query, scale,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, WALKED: tl.constexpr,
    CHECKED: tl.constexpr,
):  # fmt: skip
    """One step of pass 2: what the program's keys receive from WALKED queries."""
    places = step + tl.arange(0, WALKED)
    logits = _logits(own, own_rest, query, places, q_row, n_query, DIM, MAIN, REST, CHECKED)
    if CHECKED:
        normaliser = tl.load(lse + places, mask=places < n_query, other=float("inf"))
        attention = tl.exp2(logits * scale - normaliser[None, :])
        return tl.where(_inside(first, last, places), attention, 0.0)
    return tl.exp2(logits * scale - tl.load(lse + places)[None, :])


@triton.jit
def _column_sums(
    query, key, lse, sums, start, stop,
    q_batch, q_head, q_row, k_batch, k_head, k_row, heads, n_query, tokens, scale,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, SEGMENTS: tl.constexpr,
    OWN: tl.constexpr, WALKED: tl.constexpr,
):  # fmt: skip
    """Pass 2: a program owns OWN keys of one head and walks over the queries that see them."""
    head, rows = _mine(tokens, OWN)
    query += head // heads * q_batch + head % heads * q_head
    key += head // heads * k_batch + head % heads * k_head
    lse += head * n_query
    there = rows < tokens
    own = _load(key, rows, k_row, tokens, 0, MAIN, DIM, True)
    own_rest = own
    if REST > 0:
        own_rest = _load(key, rows, k_row, tokens, MAIN, REST, DIM, True)
    first, last, low, high = _span(start, stop, rows, there, n_query, SEGMENTS)

    # Summed across the tile once at the end, not at every step.
    received = tl.zeros([OWN, WALKED], tl.float32)
    if not SEGMENTS:
        low = high // WALKED * WALKED
        for step in range(0, low, WALKED):
            received += _attention(
                own, own_rest, query, lse, first, last, step, q_row, n_query, scale,
                DIM, MAIN, REST, WALKED, False,
            )  # fmt: skip
    for step in range(low, high, WALKED):
        received += _attention(
            own, own_rest, query, lse, first, last, step, q_row, n_query, scale,
            DIM, MAIN, REST, WALKED, True,
        )  # fmt: skip
    tl.store(sums + head * tokens + rows, tl.sum(received, axis=1), mask=there)
