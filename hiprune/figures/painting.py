"""Painting on an image: which tokens were kept, or how much each is attended to.

Everything is drawn in pixels of the image as it was given; a ``TokenGrid`` says where the tokens
lie. What is kept stays as it is in the image, the rest fades; :mod:`hiprune.figures.marks` has the
signs of the kinds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from hiprune.figures.analysis import ranks
from hiprune.figures.marks import COLOURS, marks, outline, stray_buffers
from hiprune.figures.token_grids import TokenGrid
from hiprune.images import to_rgb
from hiprune.selection import TokenSelection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from PIL.Image import Image

PADDING = "0.92"  # what the tower saw beyond the image
FADED = (1.0, 1.0, 1.0, 0.75)  # over what is dropped
_RANKS = {"cmap": "viridis", "vmin": 0.0, "vmax": 1.0}  # even in lightness
_MOST = 1600  # pixels of a side that are drawn: more than any figure shows


def paint_image(axes: Axes, image: Image, grid: TokenGrid) -> None:
    """What the tower saw there of an image: cropped, or with its padding, and in no ticks' way."""
    from PIL.Image import Resampling

    width, height = image.size
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if image.mode == "L" else {}
    pixels = image if image.mode == "L" else to_rgb(image)
    if max(image.size) > _MOST:
        pixels = pixels.copy()
        pixels.thumbnail((_MOST, _MOST), Resampling.BOX, reducing_gap=None)
    axes.set_facecolor(PADDING)
    axes.imshow(pixels, extent=(0, width, height, 0), zorder=1, **grey)
    _frame(axes, grid)


def paint_selection(
    axes: Axes, image: Image, selection: TokenSelection, grid: TokenGrid, row: int | None = None
) -> None:
    """Kept tokens as they are in the image, with the signs of their kinds; dropped ones faded.

    Buffers that touch no anchor (:func:`hiprune.figures.marks.stray_buffers`) have broken outlines.

    Args:
        axes: to draw into; its limits become the grid's box.
        image: as it was given.
        selection: of the image: (V, N) masks, or of B images of one view each.
        grid: where its tokens lie.
        row: which of the B images; None: all rows are views of this one.
    """
    import numpy as np

    if row is not None:
        selection = selection[row : row + 1]
    masks = {kind: grid.values(getattr(selection, kind)).cpu() for kind in COLOURS}
    left, top, right, bottom = grid.box
    paint_image(axes, image, grid)
    veil = np.empty((grid.rows, grid.columns, 4))
    veil[:] = FADED
    veil[grid.values(selection.keep).cpu().numpy(), 3] = 0
    axes.imshow(veil, extent=(left, right, bottom, top), interpolation="nearest", zorder=2)
    stray = stray_buffers(masks["anchor"], masks["buffer"])
    for kind, mask in masks.items():
        patches = marks(mask, grid, kind)
        if kind == "buffer":
            patches += outline(stray, grid, kind, dashed=True)
            mask = mask & ~stray
        for patch in [*outline(mask, grid, kind), *patches]:
            patch.set(zorder=3, label=kind)
            axes.add_artist(patch)  # not add_patch: it looks at every corner for limits set below
    _frame(axes, grid)


def paint_ranks(
    axes: Axes,
    image: Image,
    scores: Tensor,
    grid: TokenGrid,
    smooth: bool = False,
    chosen: tuple[str, Tensor] | None = None,
) -> ScalarMappable:
    """The rank of each token by its score over the image in grey (paper, figure of attention maps).

    Args:
        axes: to draw into; its limits become the grid's box.
        image: as it was given.
        scores: (V, N) of the image's views; ranks are taken within a view, as tokens are chosen.
        grid: where the tokens lie.
        smooth: interpolate between tokens, as the paper's figures do; else each is a rectangle.
        chosen: a kind, and the (V, N) mask of its tokens, which get an outline.

    Returns:
        What a colour bar needs.
    """
    paint_image(axes, to_rgb(image).convert("L"), grid)
    left, top, right, bottom = grid.box
    drawn = axes.imshow(
        grid.values(ranks(scores)).cpu(),
        extent=(left, right, bottom, top),
        interpolation="bicubic" if smooth else "nearest",
        alpha=0.7,
        zorder=2,
        **_RANKS,
    )
    if chosen:
        kind, mask = chosen
        for patch in outline(grid.values(mask).cpu(), grid, kind):
            patch.set(zorder=3)
            axes.add_artist(patch)
    _frame(axes, grid)
    return drawn


def _frame(axes: Axes, grid: TokenGrid) -> None:
    """Show what the grid covers, which may be more or less than the image, and no ticks."""
    left, top, right, bottom = grid.box
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
