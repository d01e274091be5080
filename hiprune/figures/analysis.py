"""What the paper's figures measure on received-attention scores: ranks, distances, IoU with a mask.

Scores are (..., N), as :func:`hiprune.figures.maps.received_attention_maps` gives them: the leading
dimensions are layers, images or views. "The top tokens" of a share p of N tokens are the
max(1, round(p * N)) highest scores; of equal scores the lower index wins and NaN ranks last, as in
the selection itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hiprune.errors import HiPruneError


def ranks(scores: Tensor) -> Tensor:
    """Normalised rank of each token among the N: 1 the most attended, 0 the least.

    Args:
        scores: (..., N).

    Returns:
        (..., N) float32, the values k / (N - 1) in some order; 1 where N = 1.
    """
    order = _order(scores)  # best first
    tokens = scores.shape[-1]
    steps = torch.arange(tokens - 1, -1, -1, device=scores.device, dtype=torch.float32)
    values = steps / (tokens - 1) if tokens > 1 else torch.ones_like(steps)
    return torch.empty(scores.shape, device=scores.device).scatter_(
        -1, order, values.expand(scores.shape)
    )


def top_tokens(scores: Tensor, share: float) -> Tensor:
    """(..., N) -> (..., k) indices of the top share of the tokens, best first.

    Raises:
        HiPruneError: a share outside of (0, 1].
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise HiPruneError(f"share={share!r}: expected a number in (0, 1]")
    return _order(scores)[..., : max(1, round(share * scores.shape[-1]))]


def dispersion(features: Tensor, scores: Tensor, share: float) -> Tensor:
    """How far the top tokens lie apart in feature space (paper, figure of dispersion by layer).

    The mean Euclidean distance over the k (k - 1) / 2 pairs of the k top tokens. The paper takes
    the last layer's features for the scores of every layer, shares of 5, 10 and 25 %.

    Args:
        features: (..., N, C), in the features' own units; leading dimensions may be fewer than
            those of ``scores`` (one image's features for all layers).
        scores: (..., N).
        share: of the N tokens, in (0, 1].

    Returns:
        (...) float64, the leading dimensions of ``scores``.

    Raises:
        HiPruneError: shapes that do not fit each other, or a share of a single token.
    """
    if features.ndim < 2 or features.shape[-2] != scores.shape[-1]:
        raise HiPruneError(
            f"features: shape {tuple(features.shape)}; expected (..., N, C) for scores of "
            f"N = {scores.shape[-1]} tokens"
        )
    top = top_tokens(scores, share)  # (..., k)
    k = top.shape[-1]
    if k < 2:
        raise HiPruneError(
            f"share={share!r}: one of {scores.shape[-1]} tokens; expected a share of at least 2"
        )
    features = features.double().expand(*scores.shape, features.shape[-1])
    index = top.unsqueeze(-1).expand(*top.shape, features.shape[-1])
    picked = features.gather(-2, index)  # (..., k, C)
    # By differences: the product form of cdist loses the digits of distances that are small.
    distances = torch.cdist(picked, picked, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.sum(dim=(-2, -1)) / (k * (k - 1))  # both orders of each pair


def token_distance(scores: Tensor, columns: int, share: float) -> Tensor:
    """How far the top tokens lie apart on the image: :func:`dispersion` of their grid places.

    Args:
        scores: (..., N) in raster order.
        columns: c, tokens per row.
        share: of the N tokens, in (0, 1].

    Returns:
        (...) float64, in tokens (the side of one is 1).
    """
    _check_columns(scores, columns)
    index = torch.arange(scores.shape[-1], device=scores.device)
    return dispersion(torch.stack([index // columns, index % columns], dim=-1), scores, share)


def centre_prior(rows: int, columns: int) -> Tensor:
    """Scores that know nothing of the image but its middle: the baseline beside an IoU.

    Returns:
        (rows * columns,) float64, the negative distance of a token from the image's centre, the
        sides counting as 1 each, so that a long image's prior is as long.
    """
    # Whole numbers over the side, so that what is symmetric is equal to the bit.
    down, right = (
        (2 * torch.arange(side, dtype=torch.float64) + 1 - side) / (2 * side)
        for side in (rows, columns)
    )
    return -(down[:, None] ** 2 + right[None, :] ** 2).sqrt().flatten()


def coverage(
    mask: Tensor,
    rows: int,
    columns: int,
    box: tuple[float, float, float, float] | None = None,
) -> Tensor:
    """The share of each token's rectangle that a mask covers: the mask pooled to the grid.

    Exact areas, whatever the sizes: a pixel on the border of two tokens counts in part for each.

    Args:
        mask: (H, W) bool, or weights from 0 to 1.
        rows, columns: of the token grid.
        box: left, top, right, bottom of the grid in the mask's pixels, which may reach beyond it
            (padding: not covered); the whole mask unless given.

    Returns:
        (rows, columns) float64.
    """
    if mask.ndim != 2 or 0 in mask.shape:
        raise HiPruneError(f"mask: shape {tuple(mask.shape)}; expected (H, W), not empty")
    height, width = mask.shape
    left, top, right, bottom = (0, 0, width, height) if box is None else box
    down = _overlaps(top, bottom, rows, height)  # (rows, H)
    across = _overlaps(left, right, columns, width)  # (columns, W)
    return down @ mask.double().cpu() @ across.T


def iou(scores: Tensor, mask: Tensor, share: float) -> Tensor:
    """Overlap of the top tokens with an object (paper, figure of IoU by layer; share 10 %).

    Area of the top tokens within the mask over the area of both together: the IoU in pixels of the
    mask and the tokens' rectangles, so that no threshold decides whether a token that is covered
    in part belongs to the object. Set beside it the same of :func:`centre_prior`.

    Args:
        scores: (..., rows * columns) in raster order.
        mask: (rows, columns), the share of each token that is covered, by :func:`coverage` from
            a mask in pixels.
        share: of the tokens, in (0, 1].

    Returns:
        (...) float64 from 0 to 1.

    Raises:
        HiPruneError: a mask of another size, or one that covers nothing.
    """
    if mask.ndim != 2 or mask.numel() != scores.shape[-1]:
        raise HiPruneError(
            f"mask: shape {tuple(mask.shape)}; expected the token grid of scores, (rows, "
            f"columns) of {scores.shape[-1]} tokens: coverage() pools a mask in pixels"
        )
    covered = mask.double().flatten().to(scores.device)  # (N,)
    if not bool((covered > 0).any()):
        raise HiPruneError("mask: covers no token; expected a mask of some object")
    top = top_tokens(scores, share)
    inside = covered[top].sum(dim=-1)
    return inside / (top.shape[-1] + covered.sum() - inside)


def _order(scores: Tensor) -> Tensor:
    """(..., N) token of each place, best first."""
    if scores.ndim < 1 or scores.shape[-1] == 0:
        raise HiPruneError(f"scores: shape {tuple(scores.shape)}; expected (..., N), N >= 1")
    # Ascending on the negated scores: torch sorts NaN as the greatest, hence last.
    return torch.argsort(-scores.double(), dim=-1, stable=True)


def _check_columns(scores: Tensor, columns: int) -> None:
    if columns < 1 or scores.shape[-1] % columns:
        raise HiPruneError(
            f"columns={columns}: expected a divisor of the {scores.shape[-1]} tokens"
        )


def _overlaps(start: float, stop: float, parts: int, pixels: int) -> Tensor:
    """(parts, pixels): the share of each of the equal parts of [start, stop] in each pixel."""
    if parts < 1 or not (math.isfinite(start) and math.isfinite(stop) and start < stop):
        raise HiPruneError(
            f"grid of {parts} tokens from {start} to {stop}: expected at least 1 token on an "
            "interval that is not empty"
        )
    edges = start + (stop - start) * torch.arange(parts + 1, dtype=torch.float64) / parts
    pixel = torch.arange(pixels, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], pixel)
    high = torch.minimum(edges[1:, None], pixel + 1)
    return (high - low).clamp(min=0) * parts / (stop - start)
