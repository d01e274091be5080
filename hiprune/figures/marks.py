"""The signs of a kept token's kind: an outline round its region, and a mark in each token.

Both are filled shapes in the picture's own units, so that they grow and shrink with the tokens,
whatever the size of the figure. The colour tells the kind, and so does the mark alone where the
colour is lost in print: anchors have a square, buffers a ring, registers a cross. What is beneath
is kept apart by a white edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from hiprune.figures.colours import BLUE, ORANGE, VERMILION
from hiprune.figures.token_grids import TokenGrid

if TYPE_CHECKING:
    from matplotlib.legend_handler import HandlerBase
    from matplotlib.patches import PathPatch

COLOURS = {"anchor": VERMILION, "buffer": ORANGE, "register": BLUE}
# In sides of a token: the outline, and the white on both sides of it.
LINE, EDGE = 0.1, 0.035
Ring = list[tuple[float, float]]  # a polygon; a hole runs the other way round


def stray_buffers(selection_anchor: Tensor, selection_buffer: Tensor) -> Tensor:
    """Buffers of a grid that touch no anchor, not with a corner either.

    Neighbours are taken on the flat index, as in the released code: of the last token of a row the
    next is the first one of the row below, and beyond the grid it is the first or the last token.

    Args:
        selection_anchor, selection_buffer: (rows, columns) bool, as a grid's values.

    Returns:
        (rows, columns) bool.
    """
    from torch.nn.functional import max_pool2d

    near = max_pool2d(selection_anchor.float()[None], 3, stride=1, padding=1)[0] > 0
    return selection_buffer & ~near


def outline(mask: Tensor, grid: TokenGrid, kind: str, dashed: bool = False) -> list[PathPatch]:
    """Round every region of tokens of a kind, within it: neighbours' outlines lie side by side.

    Args:
        mask: (rows, columns) bool.
        grid: where the tokens lie.
        kind: of COLOURS.
        dashed: broken lines.
    """
    left, top, right, bottom = grid.box
    width, height = (right - left) / grid.columns, (bottom - top) / grid.rows
    # As wide across as down, also where tokens are no squares.
    x, y = min(width, height) / width, min(width, height) / height
    patches = []
    for near, far, colour in ((0, LINE + 2 * EDGE, "white"), (EDGE, EDGE + LINE, COLOURS[kind])):
        strips = [
            _rectangle(left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height)
            for x0, y0, x1, y1 in _strips(mask, (near * x, near * y), (far * x, far * y), dashed)
        ]
        patches.append(_patch(strips, colour))
    return patches


def marks(mask: Tensor, grid: TokenGrid, kind: str) -> list[PathPatch]:
    """The kind's mark in the middle of each token."""
    left, top, right, bottom = grid.box
    width, height = (right - left) / grid.columns, (bottom - top) / grid.rows
    side = min(width, height)
    middles = [
        (left + (column + 0.5) * width, top + (row + 0.5) * height)
        for row, column in mask.nonzero().tolist()
    ]
    return _marks(kind, middles, side)


def legend_handler() -> HandlerBase:
    """For a legend whose handles are :class:`Sign`."""
    from matplotlib.legend_handler import HandlerBase

    class Handler(HandlerBase):
        def create_artists(self, legend, sign, x, y, width, height, size, transform):
            import torch

            side = 1.9 * height
            box = (0.5 * (width - side) - x, 0.5 * (height - side) - y)
            grid = TokenGrid(
                "", 1, 1, (*box, box[0] + side, box[1] + side), torch.zeros(1).long(), 1
            )
            one = torch.ones(1, 1, dtype=torch.bool)
            if sign.kind is None:
                ring = _rectangle(*grid.box)
                patches = [_patch([ring], "0.93", edge="0.7")]
            else:
                patches = [*outline(one, grid, sign.kind, sign.dashed)]
                if not sign.dashed:
                    patches += marks(one, grid, sign.kind)
            for patch in patches:
                patch.set_transform(transform)
            return patches

    return Handler()


class Sign:
    """What a legend's entry stands for: a kind, or the faded rest."""

    def __init__(self, kind: str | None, dashed: bool = False) -> None:
        self.kind, self.dashed = kind, dashed


def _marks(kind: str, middles: list[tuple[float, float]], side: float) -> list[PathPatch]:
    patches = []
    for more, colour in ((EDGE, "white"), (0, COLOURS[kind])):
        rings = [ring for x, y in middles for ring in _shape(kind, x, y, side, more)]
        patches.append(_patch(rings, colour))
    return patches


def _shape(kind: str, x: float, y: float, side: float, more: float) -> Iterator[Ring]:
    """A mark as polygons, ``more`` wider on all sides."""
    if kind == "anchor":
        half = (0.17 + more) * side
        yield _rectangle(x - half, y - half, x + half, y + half)
    elif kind == "buffer":
        yield _circle(x, y, (0.2 + more) * side)
        yield _circle(x, y, (0.11 - more) * side)[::-1]
    else:
        long, short = (0.17 + more) * side, (0.04 + more) * side
        for turn in (1, -1):
            # The corners of a bar that lies across, turned by 45 degrees.
            bar = [(-long, -short), (long, -short), (long, short), (-long, short)]
            cos = math.sqrt(0.5)
            yield [(x + cos * (a - turn * b), y + cos * (turn * a + b)) for a, b in bar]


def _circle(x: float, y: float, radius: float, corners: int = 24) -> Ring:
    angles = [2 * math.pi * n / corners for n in range(corners)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Ring:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _patch(rings: Iterable[Ring], colour: str, edge: str = "none") -> PathPatch:
    """All in one: where two touch no seam shows."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    points, codes = [], []
    for ring in rings:
        points += [*ring, ring[0]]
        codes += [Path.MOVETO, *[Path.LINETO] * (len(ring) - 1), Path.CLOSEPOLY]
    path = Path(points, codes) if points else Path([(0, 0)], [Path.MOVETO])
    patch = PathPatch(path, facecolor=colour, edgecolor=edge, linewidth=0.6 * (edge != "none"))
    patch.set_snap(False)  # to whole pixels, where what is thinner than one would vanish
    return patch


def _strips(mask: Tensor, near: tuple, far: tuple, dashed: bool) -> Iterator[tuple]:
    """(x0, y0, x1, y1) in tokens: from ``near`` to ``far`` within the edges of the regions."""
    inside = {tuple(place) for place in mask.nonzero().tolist()}
    for row, column in inside:
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            if (row + down, column + right) in inside:
                continue
            along = 0 if down else 1  # of (x, y): the way that the side runs
            ends = []
            for step in (-1, 1):
                side = (row + step * (along == 1), column + step * (along == 0))
                beyond = (side[0] + down, side[1] + right)
                # At a corner of the region; at one that juts into it; straight on.
                ends.append(near[along] if side not in inside else -far[along] * (beyond in inside))
            across = 1 - along
            place = (column, row)
            start, stop = place[along] + ends[0], place[along] + 1 - ends[1]
            if down + right < 0:
                depth = place[across] + near[across], place[across] + far[across]
            else:
                depth = place[across] + 1 - far[across], place[across] + 1 - near[across]
            parts = ((0, 0.22), (0.39, 0.61), (0.78, 1)) if dashed else ((0, 1),)
            for first, last in parts:
                run = start + first * (stop - start), start + last * (stop - start)
                (x0, x1), (y0, y1) = (run, depth) if along == 0 else (depth, run)
                yield x0, y0, x1, y1
