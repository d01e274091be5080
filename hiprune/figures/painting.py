"""Painting on an image: which tokens were kept, or how much each is attended to.

Everything is drawn in pixels of the image as it was given; a ``TokenGrid`` says where the tokens
lie. Kinds of tokens have colours of Okabe and Ito's palette, which readers
with any colour vision tell apart, of different lightness; anchors also bear a dot.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from hiprune.figures.analysis import ranks
from hiprune.figures.colours import BLUE, VERMILION, YELLOW
from hiprune.figures.token_grids import TokenGrid
from hiprune.selection import TokenSelection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from PIL.Image import Image

COLOURS = {"anchor": VERMILION, "buffer": YELLOW, "register": BLUE}
PADDING = "0.92"  # what the tower saw beyond the image
_DROPPED = (0.0, 0.0, 0.0, 0.68)
_RANKS = {"cmap": "viridis", "vmin": 0.0, "vmax": 1.0}  # even in lightness


def paint_image(axes: Axes, image: Image, grid: TokenGrid) -> None:
    """What the tower saw there of an image: cropped, or with its padding, and in no ticks' way."""
    width, height = image.size
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if image.mode == "L" else {}
    axes.set_facecolor(PADDING)
    pixels = image if image.mode == "L" else image.convert("RGB")
    axes.imshow(pixels, extent=(0, width, height, 0), zorder=1, **grey)
    _frame(axes, grid)


def paint_selection(
    axes: Axes, image: Image, selection: TokenSelection, grid: TokenGrid, row: int | None = None
) -> None:
    """Kept tokens in the colour of their kind, dropped ones dimmed, over what the tower saw.

    The image is grey, so that no colour of its own is taken for a kind.

    Args:
        axes: to draw into; its limits become the grid's box.
        image: as it was given.
        selection: of the image: (V, N) masks, or of B images of one view each.
        grid: where its tokens lie.
        row: which of the B images; None: all rows are views of this one.
    """
    import numpy as np
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    if row is not None:
        selection = selection[row : row + 1]
    masks = {kind: grid.values(getattr(selection, kind)).cpu() for kind in COLOURS}
    left, top, right, bottom = grid.box
    width, height = (right - left) / grid.columns, (bottom - top) / grid.rows
    line = _line(grid)
    paint_image(axes, image.convert("L"), grid)
    tints = np.empty((grid.rows, grid.columns, 4))
    tints[:] = _DROPPED
    for kind, mask in masks.items():
        tints[mask.numpy()] = to_rgba(COLOURS[kind], 0.3)
    axes.imshow(tints, extent=(left, right, bottom, top), interpolation="nearest", zorder=2)
    # A little smaller than the tokens, so that neighbours' outlines lie side by side.
    inset = 0.06
    for kind, mask in masks.items():
        outlines = [
            Rectangle(
                (left + (c + inset) * width, top + (r + inset) * height),
                (1 - 2 * inset) * width,
                (1 - 2 * inset) * height,
            )
            for r, c in mask.nonzero().tolist()
        ]
        axes.add_collection(
            PatchCollection(
                outlines,
                facecolor="none",
                edgecolor=COLOURS[kind],
                linewidth=line,
                zorder=3,
            )
        )
    dots = masks["anchor"].nonzero()
    axes.scatter(
        left + (dots[:, 1] + 0.5) * width,
        top + (dots[:, 0] + 0.5) * height,
        s=(3 * line) ** 2,
        color=COLOURS["anchor"],
        edgecolor="white",
        linewidth=0.5 * line,
        zorder=4,
    )
    _frame(axes, grid)


def paint_ranks(
    axes: Axes, image: Image, scores: Tensor, grid: TokenGrid, smooth: bool = False
) -> ScalarMappable:
    """The rank of each token by its score over the image in grey (paper, figure of attention maps).

    Args:
        axes: to draw into; its limits become the grid's box.
        image: as it was given.
        scores: (V, N) of the image's views; ranks are taken within a view, as tokens are chosen.
        grid: where the tokens lie.
        smooth: interpolate between tokens, as the paper's figures do; else each is a rectangle.

    Returns:
        What a colour bar needs.
    """
    paint_image(axes, image.convert("L"), grid)
    left, top, right, bottom = grid.box
    drawn = axes.imshow(
        grid.values(ranks(scores)).cpu(),
        extent=(left, right, bottom, top),
        interpolation="bicubic" if smooth else "nearest",
        alpha=0.62,
        zorder=2,
        **_RANKS,
    )
    _frame(axes, grid)
    return drawn


def _frame(axes: Axes, grid: TokenGrid) -> None:
    """Show what the grid covers, which may be more or less than the image, and no ticks."""
    left, top, right, bottom = grid.box
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")


def _line(grid: TokenGrid) -> float:
    """Width of a token's outline, in points: thin where tokens are many."""
    return min(2.0, max(0.5, 28 / math.sqrt(grid.rows * grid.columns)))
