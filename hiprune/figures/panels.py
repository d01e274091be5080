"""The paper's pictures as figures: attention maps, what was kept, and both beside the image.

Made without pyplot: no window, no global state, any back end. Every figure says in its legend and
titles what its colours are and how many tokens there are of each kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from hiprune.errors import HiPruneError
from hiprune.figures.painting import COLOURS, paint_image, paint_ranks, paint_selection
from hiprune.figures.token_grids import TokenGrid
from hiprune.selection import TokenSelection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from PIL.Image import Image

PANEL = 3.4  # inches, the longer side of a picture
_TITLE = 2.3  # inches that a panel's title needs


def selection_figure(
    image: Image, selection: TokenSelection, grids: Sequence[TokenGrid], title: str = ""
) -> Figure:
    """A panel a grid, and the legend with the counts of all (paper, figure of retained tokens)."""
    figure, panels = _panels([grids], 0.8 + 0.3 * bool(title))
    for axes, grid in zip(panels[0], grids, strict=True):
        paint_selection(axes, image, selection, grid)
        axes.set_title(caption(selection, grid), fontsize=9)
    add_legend(figure, selection)
    figure.suptitle(title or None, fontsize=10)
    return figure


def attention_figure(
    image: Image,
    maps: Tensor,
    grids: Sequence[TokenGrid],
    layers: Sequence[int] | None = None,
    smooth: bool = False,
) -> Figure:
    """A panel a layer, a row a grid (paper, figure of attention maps).

    Args:
        image: as it was given.
        maps: (layers, V, N) scores, as of :func:`hiprune.figures.maps.received_attention_maps`.
        grids: of the image's tokens.
        layers: counted from 1; the first, the middle and the last unless given.
        smooth: as of :func:`paint_ranks`.
    """
    last = len(maps)
    layers = (1, max(1, last // 2), last) if layers is None else layers
    if not layers or not all(1 <= layer <= last for layer in layers):
        raise HiPruneError(f"layers={tuple(layers)}: expected numbers from 1 to {last}")
    figure, panels = _panels([[grid] * len(layers) for grid in grids], 0.6)
    for row, grid in zip(panels, grids, strict=True):
        for axes, layer in zip(row, layers, strict=True):
            drawn = paint_ranks(axes, image, maps[layer - 1], grid, smooth)
            where = "" if grid.name == "image" else f", {grid.name}"
            axes.set_title(f"layer {layer} of {last}{where}", fontsize=9)
    add_colour_bar(figure, drawn, [axes for row in panels for axes in row])
    return figure


def tokens_figure(
    image: Image,
    maps: Tensor,
    selection: TokenSelection,
    grids: Sequence[TokenGrid],
    object_layer: int,
    output_layer: int,
    title: str = "",
) -> Figure:
    """How an image's tokens were chosen: the image, both layers' maps, the selection; a row a grid.

    Args:
        image: as it was given.
        maps: (layers, V, N) scores of all layers.
        selection: of the image, (V, N) masks.
        grids: of the image's tokens.
        object_layer, output_layer: counted from 1.
        title: of the figure.
    """
    figure, panels = _panels([[grid] * 4 for grid in grids], 1.3 + 0.3 * bool(title))
    for row, grid in zip(panels, grids, strict=True):
        paint_image(row[0], image, grid)
        row[0].set_title(f"input, {grid.name}" if grid.name != "image" else "input", fontsize=9)
        for axes, layer, chosen in (
            (row[1], object_layer, "anchors"),
            (row[2], output_layer, "registers"),
        ):
            drawn = paint_ranks(axes, image, maps[layer - 1], grid)
            axes.set_title(f"layer {layer} of {len(maps)}: chooses {chosen}", fontsize=9)
        paint_selection(row[3], image, selection, grid)
        row[3].set_title(caption(selection, grid), fontsize=9)
    add_colour_bar(figure, drawn, [axes for row in panels for axes in row])
    add_legend(figure, selection)
    figure.suptitle(title or None, fontsize=10)
    return figure


def counts(selection: TokenSelection) -> dict[str, int]:
    """How many tokens of each kind, of all rows: anchor, buffer, register, dropped."""
    found = {kind: int(getattr(selection, kind).sum()) for kind in COLOURS}
    return {**found, "dropped": selection.keep.numel() - int(selection.keep.sum())}


def caption(selection: TokenSelection, grid: TokenGrid) -> str:
    """ "base view: 48 of 144 kept" """
    where = "" if grid.name == "image" else f"{grid.name}: "
    kept = int(grid.values(selection.keep).sum())
    return f"{where}{kept} of {grid.rows * grid.columns} kept"


def add_legend(figure: Figure, selection: TokenSelection) -> None:
    """The kinds with their counts, and N' of N, beneath a figure."""
    from matplotlib.lines import Line2D

    handles = []
    for kind, count in counts(selection).items():
        label = f"{count} {kind if count == 1 or kind == 'dropped' else kind + 's'}"
        colour = COLOURS.get(kind, "0.35")
        handles.append(Line2D([], [], linestyle="", marker="s", color=colour, ms=9, label=label))
    columns = 4 if figure.get_figwidth() >= 6 else 2
    kept, total = int(selection.keep.sum()), selection.keep.numel()
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False,
        title=f"{kept} of {total} tokens kept ({100 * kept / total:.1f} %)", title_fontsize=9,
    )  # fmt: skip


def add_colour_bar(figure: Figure, drawn: ScalarMappable, axes: Sequence[Axes]) -> None:
    """What the colours of :func:`paint_ranks` mean, beneath these axes."""
    bar = figure.colorbar(
        drawn, ax=list(axes), location="bottom", shrink=0.5, aspect=45, pad=0.03, ticks=[0, 0.5, 1]
    )
    bar.ax.set_xticklabels(
        ["0\nleast attended", "0.5\nrank of a token in its layer", "1\nmost attended"], fontsize=8
    )


def _panels(rows: Sequence[Sequence[TokenGrid]], more: float) -> tuple[Figure, list[list[Axes]]]:
    """A figure whose panels have the proportions of the grids in them.

    ``more``: inches of height for what stands above and below the panels.
    """
    from matplotlib.figure import Figure

    heights = [max(_inches(grid)[1] for grid in row) for row in rows]
    widths = [max(_TITLE, *(_inches(row[n])[0] for row in rows)) for n in range(len(rows[0]))]
    size = (max(sum(widths) + 0.1 * len(widths), 4.5), sum(heights) + 0.35 * len(heights) + more)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.05)
    axes = figure.subplots(
        len(rows), len(widths), squeeze=False, width_ratios=widths, height_ratios=heights
    )
    return figure, [list(row) for row in axes]


def _inches(grid: TokenGrid) -> tuple[float, float]:
    left, top, right, bottom = grid.box
    longest = max(right - left, bottom - top)
    return PANEL * (right - left) / longest, PANEL * (bottom - top) / longest
