"""Buffers: which tokens of the image's grid are an anchor's neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

_CROSS = ((0, -1), (0, 1), (-1, 0), (1, 0))
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
# Steps (down, right) from an anchor; the paper's names in Tables 6c and 11 are in comments.
SHAPES = {
    "cross": _CROSS,  # Cross(4), the default
    "square": _CROSS + _DIAGONAL,  # Square(8)
    "diagonal": _DIAGONAL,  # Rot-Cross(4)
    "row": ((0, -1), (0, 1)),  # Row(2)
    "column": ((-1, 0), (1, 0)),  # Column(2)
    "none": (),
}
NEIGHBORHOODS = ("flat", "grid")


def neighbours(
    anchors: Tensor, tokens: int, columns: int, shape: str = "cross", neighborhood: str = "flat"
) -> Tensor:
    """(B, n_a) anchors -> (B, k n_a) places, the k neighbours of all anchors one after the other.

    Args:
        anchors: numbers below N.
        tokens: N.
        columns: c, tokens per row.
        shape: a key of SHAPES.
        neighborhood: "flat": a step on the flat index, so that a row's first token neighbours the
            last one above; out of range is clamped to 0 and N-1 (the released code). "grid": a
            step beyond the grid leads nowhere, told by the anchor itself.
    """
    found = []
    for down, right in SHAPES[shape]:
        place = anchors + (down * columns + right)
        if neighborhood == "grid":
            column = anchors % columns + right
            inside = (column >= 0) & (column < columns) & (place >= 0) & (place < tokens)
            place = torch.where(inside, place, anchors)
        found.append(place)
    # On a grid all are within, and stay.
    return torch.cat(found, dim=1).clamp_(0, tokens - 1) if found else anchors[:, :0]
