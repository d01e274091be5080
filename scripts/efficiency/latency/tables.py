"""Markdown tables with measured cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scripts.efficiency.latency.rounds import Row
from scripts.efficiency.latency.stats import Summary, summarise, values_of

MISSING = "-"
MS, MB = 1e3, 1e-6  # of seconds, of bytes


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, for a terminal as well."""
    lines = [list(header), *map(list, rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]

    def join(line: Sequence[str]) -> str:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        return f"| {' | '.join(cells)} |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([join(lines[0]), rule, *map(join, lines[1:])])


def number(value: float) -> str:
    """Three significant digits or more; without an exponent, or decimals of a whole number."""
    size = abs(value)
    if size >= 1000 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.3g}" if size >= 1 else f"{value:.3f}"


def spread(
    found: Summary | None, scale: float = 1.0, write: Callable[[float], str] = number
) -> str:
    """median [lower quartile, upper quartile]; the median alone where all are the same."""
    if found is None:
        return MISSING
    median, low, high = (write(scale * x) for x in (found.median, found.q1, found.q3))
    return median if found.q1 == found.q3 else f"{median} [{low}, {high}]"


def ratio(found: Summary | None) -> str:
    return spread(found, write="{:.3f}".format)


def measured(row: Row, metric: str, scale: float = 1.0) -> str:
    return spread(summarise(values_of(row.of(metric), metric)), scale)
