"""How a notebook shows a figure, a table or a line: PNG of moderate size, its caption below it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import paths  # noqa: F401, which finds scripts
from IPython.display import Image as Shown
from IPython.display import Markdown, display
from PIL import Image

from hiprune.figures import colours
from scripts.tables.render import markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 80
LARGEST_PNG = 100_000  # bytes
BLUE, ORANGE, GREEN = colours.BLUE, colours.VERMILION, colours.GREEN
PINK, SKY, GREY = colours.PINK, colours.SKY, colours.GREY
# A marker each, so that no line hangs on its colour alone.
STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "D"))


def show(figure: Figure, caption: str) -> None:
    """A figure, and below it what it was drawn from; one with photos is kept as JPEG."""
    file, kind = io.BytesIO(), "png"
    figure.savefig(file, format=kind, dpi=DPI)
    if len(file.getvalue()) > LARGEST_PNG:
        image, file, kind = Image.open(file).convert("RGB"), io.BytesIO(), "jpeg"
        image.save(file, format=kind, quality=88, subsampling=0)
    display(Shown(file.getvalue(), format=kind, alt=caption), Markdown(f"*{caption}*"))


def show_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; numbers as they are written."""
    display(Markdown(markdown(header, [[str(cell) for cell in row] for row in rows])))


def panels(rows: int, columns: int, width: float = 4.2, height: float = 3.2, **more):
    """A figure and its axes, (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def tidy(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Labels, and no more of a frame than they need."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def bare(axes: Axes) -> None:
    """No frame and no ticks: places mean nothing but their distances."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def kinds_legend(figure: Figure) -> None:
    """The colours of the kinds of tokens, below a figure of several selections."""
    from matplotlib.lines import Line2D

    from hiprune.figures.painting import COLOURS

    handles = [
        Line2D([], [], linestyle="", marker="s", color=colour, ms=9, label=f"{kind}s")
        for kind, colour in {**COLOURS, "dropped token": "0.35"}.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
