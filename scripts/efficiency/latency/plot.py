"""The parts of the time to first token, stacked, a bar per setting; or one bar per variant."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hiprune.figures.colours import BLUE, GREEN, VERMILION, YELLOW
from scripts.efficiency.latency.report import TITLES
from scripts.efficiency.latency.rounds import Rounds, Row, Summary, summarise, values_of
from scripts.efficiency.latency.spans import PARTS

COLOURS = (BLUE, VERMILION, YELLOW, GREEN)


def draw(record: dict[str, Any], rounds: Rounds, file: Path) -> bool:
    """Write a PNG; False if there is nothing to draw."""
    rows = [row for row in rounds.rows if row.samples]
    if not rows:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    bars: Callable = _stacked if record["settings"]["part"] == "all" else _plain
    bars(axes, rows)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(textwrap.fill(record["title"], 90), fontsize=10, loc="left")
    figure.savefig(file, dpi=150)
    return True


def _stacked(axes: Any, rows: Sequence[Row]) -> None:
    left = [0.0] * len(rows)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        widths = [1e3 * _summary(row, part).median for row in rows]
        axes.barh(
            range(len(rows)), widths, left=left, color=colour, edgecolor="white", label=TITLES[part]
        )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, row in enumerate(rows):
        if "kept_tokens" in row.facts:
            row_tokens = f"{row.facts['kept_tokens']} tokens"
        else:
            row_tokens = f"{row.samples[-1]['kv_tokens'] - row.facts['text_tokens']:.0f} tokens"
        axes.annotate(
            row_tokens, (left[place], place), (4, 0), textcoords="offset points", va="center",
            fontsize=8,
        )  # fmt: skip
    axes.set_xlabel("ms, median of each part")
    axes.margins(x=0.14)
    axes.figure.legend(loc="outside lower center", ncols=len(PARTS), frameon=False, fontsize=9)


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
        axes.errorbar(medians, places, xerr=whiskers, fmt="o", color=COLOURS[0], capsize=3)
        axes.set_xscale("log")
        axes.grid(axis="x", alpha=0.3)
    else:
        axes.barh(places, medians, xerr=whiskers, color=COLOURS[0], capsize=3)
    axes.set_xlabel("ms, median and quartiles")


def _summary(row: Row, metric: str) -> Summary:
    return summarise(values_of(row.samples, metric)) or Summary(0.0, 0.0, 0.0, 0)
