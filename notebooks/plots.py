"""How a notebook shows a figure, a table or a line: PNG of moderate size, its caption below it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import paths  # noqa: F401, which finds scripts
from IPython.display import Image as Shown
from IPython.display import Markdown, display
from PIL import Image

from hiprune.figures.colours import BLUE, GREEN, GREY, ORANGE, PINK, SKY, VERMILION, tidy
from scripts.tables.render import markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
LARGEST_PNG = 120_000  # bytes
# A marker each, so that no line hangs on its colour alone.
STYLES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PINK, "D"))
__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PINK",
    "SKY",
    "STYLES",
    "VERMILION",
    "bare",
    "kinds_legend",
    "panels",
    "show",
    "show_table",
    "tidy",
]


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


def bare(axes: Axes) -> None:
    """No frame and no ticks: places mean nothing but their distances."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def kinds_legend(figure: Figure) -> None:
    """The signs of the kinds of tokens, below a figure of several selections."""
    from hiprune.figures.marks import COLOURS, Sign
    from hiprune.figures.panels import kinds_legend as legend

    signs = [*map(Sign, COLOURS), Sign(None)]
    legend(figure, signs, [*(f"{kind}s" for kind in COLOURS), "dropped tokens, faded"])
