"""select_tokens: two score vectors per image -> which tokens are kept, and as what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from hiprune.errors import HiPruneError
from hiprune.neighbours import NEIGHBORHOODS, SHAPES, neighbours


@dataclass(frozen=True)
class TokenSelection:
    """The kept tokens of B images (or of the B views of one image) with N tokens each.

    Attributes:
        anchor: (B, N) bool, most attended in the object layer.
        buffer: (B, N) bool, neighbours of anchors.
        register: (B, N) bool, most attended in the output layer among the others.
        keep: (B, N) bool, the union; anchor, buffer and register are disjoint.
        indices: (B, N') int64, the kept tokens in ascending (raster) order.
        merged: (B, C', C) float32, tokens that a merging method makes, to follow the kept ones, of
            which there are fewer then; None: the method makes none.
    """

    anchor: Tensor
    buffer: Tensor
    register: Tensor
    keep: Tensor
    indices: Tensor
    merged: Tensor | None = None

    def gather(self, tokens: Tensor) -> Tensor:
        """The kept rows of ``tokens``: (B, N, C) -> (B, N', C)."""
        return tokens.gather(1, self.indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

    def __getitem__(self, rows: slice) -> TokenSelection:
        """The selection of some of the B rows."""
        return TokenSelection(
            self.anchor[rows],
            self.buffer[rows],
            self.register[rows],
            self.keep[rows],
            self.indices[rows],
            None if self.merged is None else self.merged[rows],
        )


def select_tokens(
    object_scores: Tensor,
    output_scores: Tensor,
    *,
    columns: int,
    budget: int,
    alpha: float,
    buffer: str = "cross",
    neighborhood: str = "flat",
) -> TokenSelection:
    """Choose exactly N' = min(budget, N) of N tokens per image (paper, section "Method").

    Anchors are the round(alpha * N' / 5) tokens with the highest object-layer score; buffers their
    neighbours i-1, i+1, i-c, i+c; registers fill up by output-layer score. Neighbours are taken on
    the flat index and clamped to 0 and N-1, as the released code does: there is no row-edge check.
    If anchors and buffers exceed N', anchors stay, then buffers by object-layer score.

    All B images are chosen at once, on the device of the scores, without waiting for it. Equal
    scores: the lower index wins. NaN ranks last.

    Args:
        object_scores: (B, N), attention received in the object layer l.
        output_scores: (B, N), attention received in the output layer.
        columns: c, tokens per row of the image's grid.
        budget: N', tokens to keep; N or more keeps all.
        alpha: share of the budget for anchors plus buffers, in [0, 1].
        buffer, neighborhood: as of :func:`hiprune.neighbours.neighbours`.

    Raises:
        HiPruneError: scores of other shapes, or columns, budget or alpha out of range.
    """
    _check(object_scores, output_scores, columns, budget, alpha)
    _check_buffer(buffer, neighborhood)
    tokens = object_scores.shape[1]  # N
    budget = min(int(budget), tokens)  # N'
    orders, places = ranks(torch.stack(_alike(object_scores, output_scores)))  # (2, B, N) each
    object_rank, output_rank = places
    anchors = orders[0, :, : round(float(alpha) * budget / 5)]  # (B, n_a)
    near = neighbours(anchors, tokens, columns, buffer, neighborhood)  # (B, k n_a)

    # One key orders all tokens: anchors, then buffers, then the rest. Keys are distinct, so that
    # the N' smallest are exactly N' tokens whatever the scores.
    kind = torch.zeros_like(object_rank).scatter_(1, near, 1).scatter_(1, anchors, 2)  # (B, N)
    key = torch.where(kind > 0, object_rank, output_rank).sub_(kind, alpha=tokens)
    kept = key.argsort(dim=1)[:, :budget]  # (B, N')
    keep = torch.zeros_like(kind, dtype=torch.bool).scatter_(1, kept, True)
    return TokenSelection(
        anchor=kind == 2,
        buffer=(kind == 1) & keep,
        register=(kind == 0) & keep,
        keep=keep,
        indices=kept.sort(dim=1).values,
    )


def ranks(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(..., N) scores -> token of each place and place of each token, best first.

    Equal scores: the lower index comes first. NaN comes last.
    """
    # Ascending on the negated scores: torch sorts NaN as the greatest, hence last.
    if not scores.is_floating_point():
        scores = scores.double()
    order = torch.argsort(-scores, dim=-1, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return order, torch.empty_like(order).scatter_(-1, order, places)


def _alike(*scores: Tensor) -> Sequence[Tensor]:
    """Of one type, in which none loses a digit: to rank both at once takes half the launches."""
    if len({each.dtype for each in scores}) == 1:
        return scores
    return [each.double() for each in scores]


def _check(object_scores: Tensor, output_scores: Tensor, columns, budget, alpha) -> None:
    if object_scores.ndim != 2 or object_scores.shape[1] == 0:
        raise HiPruneError(
            f"object_scores: shape {tuple(object_scores.shape)}, expected (B, N) with N >= 1"
        )
    if output_scores.shape != object_scores.shape:
        raise HiPruneError(
            f"output_scores: shape {tuple(output_scores.shape)}, expected that of object_scores, "
            f"{tuple(object_scores.shape)}"
        )
    if output_scores.device != object_scores.device:
        raise HiPruneError(
            f"output_scores: on {output_scores.device}, expected object_scores' device, "
            f"{object_scores.device}"
        )
    for name, value in (("columns", columns), ("budget", budget)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise HiPruneError(f"{name}={value!r}: expected an integer of at least 1")
    if not isinstance(alpha, Real) or isinstance(alpha, bool) or not 0 <= alpha <= 1:
        raise HiPruneError(f"alpha={alpha!r}: expected a number from 0 to 1")


def _check_buffer(buffer: str, neighborhood: str) -> None:
    for name, value, expected in (
        ("buffer", buffer, SHAPES),
        ("neighborhood", neighborhood, NEIGHBORHOODS),
    ):
        if value not in expected:
            raise HiPruneError(f"{name}={value!r}: expected one of {', '.join(expected)}")
