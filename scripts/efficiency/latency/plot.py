"""The parts of the time to first token, stacked, a bar per setting; or one bar per variant."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hiprune.figures.colours import BLUE, GREY, ORANGE, SKY, VERMILION, tidy
from scripts.efficiency.latency.clock import OTHER
from scripts.efficiency.latency.report import TITLES
from scripts.efficiency.latency.rounds import Rounds, Row, Summary, summarise, values_of
from scripts.efficiency.latency.spans import PARTS

# In the order in which they run; from light to dark and back where they touch.
COLOURS = dict(zip((*PARTS, OTHER), (SKY, VERMILION, ORANGE, BLUE, GREY), strict=True))
WIDTHS = (1, 0.85)  # of the bars, and of the times beside them


def draw(record: dict[str, Any], rounds: Rounds, file: Path) -> bool:
    """Write a PNG; False if there is nothing to draw."""
    rows = [row for row in rounds.rows if row.samples]
    if not rows:
        return False
    from matplotlib.figure import Figure

    if record["settings"]["part"] == "all":
        figure = Figure(figsize=(9, 1.6 + 0.45 * len(rows)), layout="constrained")
        axes, table = figure.subplots(1, 2, width_ratios=WIDTHS)
        parts = {_label(row): {p: _summary(row, p).median for p in COLOURS} for row in rows}
        stacked(axes, table, parts)
    else:
        figure = Figure(figsize=(8, 1.9 + 0.42 * len(rows)), layout="constrained")
        axes = figure.subplots()
        _plain(axes, rows)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.invert_yaxis()
    tidy(axes, "", axes.get_xlabel())
    figure.suptitle(textwrap.fill(record["title"], 100), fontsize=10, x=0.01, ha="left")
    figure.savefig(file, dpi=150)
    return True


def stacked(axes: Any, table: Any, rows: Mapping[str, Mapping[str, float]]) -> None:
    """A bar a setting, and its parts' times beside it, which add up to what stands for the bar.

    Args:
        axes, table: to draw the bars into, and the times; side by side, of WIDTHS.
        rows: setting, the first on top -> part, of COLOURS, and what else was measured -> seconds.
    """
    most = max(sum(parts[part] for part in COLOURS) for parts in rows.values())
    unit, name = (1, "s") if most >= 1 else (1e3, "ms")
    places = range(len(rows))
    left = [0.0] * len(rows)
    for part, colour in COLOURS.items():
        widths = [unit * parts[part] for parts in rows.values()]
        axes.barh(places, widths, left=left, height=0.7, color=colour)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(yticks=places, yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel(f"{name}: medians of the parts, and their sum")
    digits = 2 if unit * most < 100 else 0
    table.set(xlim=(0, 1 + len(COLOURS)), ylim=axes.get_ylim())
    table.axis("off")
    for number, part in enumerate(("sum", *COLOURS)):
        x = number + 0.9
        title = textwrap.fill({"sum": "sum", **TITLES}[part].replace(" and", ","), 9)
        table.text(x, -0.62, title, ha="right", va="bottom", fontsize=8)
        if part in COLOURS:  # the legend
            table.plot([x - 0.75, x], [-0.5, -0.5], color=COLOURS[part], lw=5, clip_on=False)
        for place, parts in zip(places, rows.values(), strict=True):
            texts = summing([unit * parts[p] for p in COLOURS], digits)
            table.text(x, place, texts[number], ha="right", va="center", fontsize=8.5)


def summing(values: Sequence[float], digits: int) -> list[str]:
    """The sum, and the values, so rounded that they add up to it as they are written."""
    step = 10.0**-digits
    total = round(math.fsum(values) / step)
    whole = [math.floor(value / step) for value in values]
    rests = [value / step - floor for value, floor in zip(values, whole, strict=True)]
    # Up go those that lose most otherwise.
    order = sorted(range(len(values)), key=lambda n: -rests[n])
    for number in order[: total - sum(whole)]:
        whole[number] += 1
    return [f"{number * step:.{digits}f}" for number in (total, *whole)]


def _label(row: Row) -> str:
    if "kept_tokens" in row.facts:
        tokens = row.facts["kept_tokens"]
    else:
        tokens = row.samples[-1]["kv_tokens"] - row.facts["text_tokens"]
    text = f"{tokens:.0f} tokens"
    return text if row.label == f"{tokens:.0f}" else f"{row.label},\n{text}"


def _plain(axes: Any, rows: Sequence[Row]) -> None:
    found = [_summary(row, "time") for row in rows]
    medians = [1e3 * summary.median for summary in found]
    whiskers = [
        [1e3 * (summary.median - summary.q1) for summary in found],
        [1e3 * (summary.q3 - summary.median) for summary in found],
    ]
    places = range(len(rows))
    if 0 < 100 * min(medians) < max(medians):
        # On one linear axis the longest would hide all others; a bar has no length on a log one.
        axes.errorbar(medians, places, xerr=whiskers, fmt="o", color=BLUE, capsize=3)
        axes.set_xscale("log")
        axes.grid(axis="x", alpha=0.3)
    else:
        axes.barh(places, medians, xerr=whiskers, color=BLUE, capsize=3)
    axes.set_xlabel("ms, median and quartiles")


def _summary(row: Row, metric: str) -> Summary:
    return summarise(values_of(row.samples, metric)) or Summary(0.0, 0.0, 0.0, 0)
