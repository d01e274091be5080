"""The style of all plots of this repository: Okabe and Ito's colours, and axes without clutter.

Readers with any colour vision tell these colours apart; still no plot hangs on colour alone, since
many are printed in grey: lines have markers, kinds of tokens have signs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, VERMILION, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, YELLOW, BLACK = "#56B4E9", "#E69F00", "#F0E442", "#000000"
GREY = "#666666"  # none of theirs


def tidy(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Title and labels, and no more of a frame than they need."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
