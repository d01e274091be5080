"""The paper's pictures as figures: attention maps, what was kept, and both beside the image.

Made without pyplot: no window, no global state, any back end. Every figure says in its legend and
titles what its colours are and how many tokens there are of each kind.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor

from hiprune.errors import HiPruneError
from hiprune.figures.marks import COLOURS, Sign, legend_handler, stray_buffers
from hiprune.figures.painting import paint_image, paint_ranks, paint_selection
from hiprune.figures.token_grids import TokenGrid
from hiprune.selection import TokenSelection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from PIL.Image import Image

PANEL = 3.8  # inches, the longer side of a picture
_TITLE = 2.3  # inches that a panel's title needs
_NARROW = 1.8  # one of two lines


def selection_figure(
    image: Image, selection: TokenSelection, grids: Sequence[TokenGrid], title: str = ""
) -> Figure:
    """A panel a grid, and the legend with the counts of all (paper, figure of retained tokens)."""
    figure, panels = _panels([grids], 0.8)
    for axes, grid in zip(panels[0], grids, strict=True):
        paint_selection(axes, image, selection, grid)
        axes.set_title(caption(selection, grid), fontsize=9)
    add_legend(figure, selection, grids)
    _head(figure, title)
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
    question: str = "",
    answers: tuple[str, str] | None = None,
) -> Figure:
    """How an image's tokens were chosen: the image, both layers' maps, the selection; a row a grid.

    Args:
        image: as it was given.
        maps: (layers, V, N) scores of all layers.
        selection: of the image, (V, N) masks.
        grids: of the image's tokens.
        object_layer, output_layer: counted from 1.
        title: of the figure.
        question: that the model was asked about the image, above the panels.
        answers: with all tokens, and with the kept ones; each below its picture.
    """
    from matplotlib.figure import Figure

    wide = [_inches(grid)[0] for grid in grids]
    high = [_inches(grid)[1] for grid in grids]
    widths = [max(_TITLE, *wide), max(_NARROW, 0.46 * max(wide)), max(_TITLE, *wide)]
    heights = [max(1.9, inches) + 0.35 for inches in high]
    lines = [textwrap.wrap(_printable(text), 46) or ["nothing"] for text in answers or ()]
    more = 1.25 + 0.2 * max((len(found) + 1 for found in lines), default=0)
    figure = Figure(figsize=(sum(widths) + 0.3, sum(heights) + more), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.05)
    halves = [inches for inches in heights for _ in range(2)]
    cells = figure.add_gridspec(len(halves), 3, width_ratios=widths, height_ratios=halves)
    narrow = []
    for n, grid in enumerate(grids):
        first, last = (figure.add_subplot(cells[2 * n : 2 * n + 2, place]) for place in (0, 2))
        paint_image(first, image, grid)
        first.set_title(f"input, {grid.name}" if grid.name != "image" else "input", fontsize=9)
        for half, (layer, kind) in enumerate(
            ((object_layer, "anchor"), (output_layer, "register"))
        ):
            chosen = kind, getattr(selection, kind)
            narrow.append(figure.add_subplot(cells[2 * n + half, 1]))
            drawn = paint_ranks(narrow[-1], image, maps[layer - 1], grid, chosen=chosen)
            narrow[-1].set_title(f"layer {layer} of {len(maps)}:\nchooses {kind}s", fontsize=8)
        paint_selection(last, image, selection, grid)
        last.set_title(caption(selection, grid), fontsize=9)
    if answers:
        kept, total = int(selection.keep.sum()), selection.keep.numel()
        for axes, tokens, found in zip((first, last), (total, kept), lines, strict=True):
            heading = f"{'all ' * (axes is first)}{tokens} tokens answer"
            text = "\n".join([heading, *found])
            axes.set_xlabel(text, fontsize=10, parse_math=False, family=_fonts())
    add_colour_bar(figure, drawn, narrow, narrow=True)
    add_legend(figure, selection, grids)
    _head(figure, title, question)
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


def add_legend(figure: Figure, selection: TokenSelection, grids: Sequence[TokenGrid] = ()) -> None:
    """The kinds with their counts, and N' of N, beneath a figure.

    With the ``grids`` it also says how many buffers touch no anchor, and why, if there are any.
    """
    signs, labels = [], []
    for kind, count in counts(selection).items():
        signs.append(Sign(kind if kind in COLOURS else None))
        labels.append(f"{count} {kind if count == 1 or kind == 'dropped' else kind + 's'}")
    masks = [[grid.values(m) for m in (selection.anchor, selection.buffer)] for grid in grids]
    stray = sum(int(stray_buffers(*pair).sum()) for pair in masks)
    if stray:
        place = list(COLOURS).index("buffer") + 1
        labels.insert(place, f"{stray} of these wrapped round the end of a row or the grid")
        signs.insert(place, Sign("buffer", dashed=True))
    kept, total = int(selection.keep.sum()), selection.keep.numel()
    kinds_legend(
        figure, signs, labels, f"{kept} of {total} tokens kept ({100 * kept / total:.1f} %)"
    )


def kinds_legend(
    figure: Figure, signs: Sequence[Sign], labels: Sequence[str], title: str = ""
) -> None:
    """A legend of signs beneath a figure."""
    import numpy as np
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=9)

    def inches_of(line: str) -> float:
        return text_to_path.get_text_width_height_descent(line, font, False)[0] / 72

    inches, sign = figure.get_figwidth() - 0.3, 0.5
    labels = [textwrap.fill(label, int((inches - sign) / 0.07)) for label in labels]
    lengths = [sign + max(map(inches_of, label.split("\n"))) for label in labels]
    columns = len(labels)
    # As matplotlib fills them: one after the other, the first ones with an entry more.
    while columns > 1 and sum(map(max, np.array_split(lengths, columns))) > inches:
        columns -= 1
    figure.legend(
        signs, labels, handler_map={Sign: legend_handler()}, loc="outside lower center",
        ncols=columns, fontsize=9, frameon=False, title=title or None, title_fontsize=9,
        columnspacing=1.4, handlelength=1.9, handletextpad=0.6,
    )  # fmt: skip


def add_colour_bar(
    figure: Figure, drawn: ScalarMappable, axes: Sequence[Axes], narrow: bool = False
) -> None:
    """What the colours of :func:`paint_ranks` mean, beneath these axes."""
    bar = figure.colorbar(
        drawn,
        ax=list(axes),
        location="bottom",
        shrink=0.9 if narrow else 0.5,
        aspect=18 if narrow else 45,
        pad=0.02 if narrow else 0.03,
        ticks=[0, 0.5, 1],
    )
    labels = ["0\nleast attended", "0.5\nrank of a token in its layer", "1\nmost attended"]
    if narrow:
        labels = ["least\nattended", "rank in\nits layer", "most\nattended"]
    bar.ax.set_xticklabels(labels, fontsize=7.5 if narrow else 8)


def _head(figure: Figure, title: str, question: str = "") -> None:
    """Lines above all else, for which the figure grows."""
    lines = [
        *textwrap.wrap(_printable(question), int(11 * figure.get_figwidth())),
        *([title] if title else []),
    ]
    if not lines:
        return
    high = figure.get_figheight() + (more := 0.17 * len(lines) + 0.16)  # inches
    figure.set_figheight(high)
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - more / high))
    # Not a formula, whatever signs a question has.
    figure.suptitle(
        "\n".join(lines),
        y=1 - 0.06 / high,
        va="top",
        fontsize=10,
        parse_math=False,
        family=_fonts(),
    )


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


@cache
def _fonts() -> list[str]:
    """Matplotlib's own, and for what it lacks those of the usual ones that are there."""
    from matplotlib.font_manager import fontManager

    there = {font.name for font in fontManager.ttflist}
    others = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei", "SimHei")
    return ["DejaVu Sans", *(name for name in others if name in there)]


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
