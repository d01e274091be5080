"""The serving benchmark's report: Markdown tables, ratios over the unpruned server, a picture."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from hiprune.figures.colours import BLUE, GREEN, VERMILION, YELLOW
from scripts.efficiency.latency.cli import FEW_REPETITIONS
from scripts.efficiency.latency.report import CELLS, MS, measured, ratio
from scripts.efficiency.latency.rounds import Comparison, Rounds, Row, summarise, values_of
from scripts.tables.paper import UNPRUNED
from scripts.tables.render import markdown

# Metric -> title, scale.
METRICS = {
    "requests_per_second": ("requests/s", 1.0),
    "ttft": ("time to first token, ms", MS),
    "tpot": ("time per output token, ms", MS),
    "ttft_alone": ("time to first token, alone, ms", MS),
    "tpot_alone": ("time per output token, alone, ms", MS),
    "kv_tokens": ("tokens in the KV cache a request", 1.0),
}
CPU = {
    "front_cpu": ("front end, CPU ms a request", MS),
    "engine_cpu": ("engine, CPU ms a request", MS),
}
COLOURS = (GREEN, BLUE, VERMILION, YELLOW)
DRAWN = ("requests_per_second", "ttft", "ttft_alone", "kv_tokens")


def comparisons(rounds: Rounds) -> list[Comparison]:
    return [
        Comparison(row.label, UNPRUNED, metric)
        for row in rounds.rows
        if row.label != UNPRUNED
        for metric in METRICS
    ]


def render(record: dict[str, Any], rounds: Rounds) -> str:
    settings = record["settings"]
    shown = {**METRICS, **{name: CPU[name] for name in CPU if rounds.rows[0].of(name)}}
    header = ["server", "n", *(title for title, _ in shown.values()), "requests that fit"]
    rows = [
        [
            row.label,
            str(len(row.samples)),
            *(measured(row, metric, scale) for metric, (_, scale) in shown.items()),
            str(_fitting(row)),
        ]
        for row in rounds.rows
    ]
    ratios = [
        [row.label, *(ratio(Comparison(row.label, UNPRUNED, m).summary(rounds)) for m in METRICS)]
        for row in rounds.rows
        if row.label != UNPRUNED
    ]
    width, height = settings["image_size"]
    notes = [
        CELLS,
        f"A run: {settings['requests']} requests, {settings['concurrency']} at once, by vLLM's own "
        f"serving benchmark (custom_image); each has one picture of {width} x {height} pixels that "
        f"comes once, and exactly {settings['new_tokens']} new tokens. Times are medians of the "
        "requests of a run; alone: of requests one after the other.",
        "Tokens in the KV cache are counted by the engine: the prompt's and the answer's, but the "
        "last. Requests that fit: into the server's KV cache at once, in whole blocks.",
    ]
    if any(0 < len(row.samples) < FEW_REPETITIONS for row in rounds.rows):
        notes.append(f"n is below {FEW_REPETITIONS}: the quartiles say little about the spread.")
    blocks = [f"### {record['title']}"]
    if rounds.interrupted:
        blocks.append("**Interrupted: what was measured until then.**")
    blocks.append(markdown(header, rows))
    if ratios:
        blocks.append("Over the unpruned server's, repetition by repetition:")
        blocks.append(markdown(["server", *(title for title, _ in METRICS.values())], ratios))
    blocks.append(" ".join(notes))
    blocks.append(f"`{record['command']}`")
    return "\n\n".join(blocks)


def _fitting(row: Row) -> int | str:
    found = summarise(values_of(row.samples, "kv_tokens"))
    if found is None:
        return "-"
    block = row.facts["block"]
    return row.facts["cache_tokens"] // block // math.ceil(found.median / block)


def draw(record: dict[str, Any], rounds: Rounds, file: Path) -> None:
    """A PNG: a panel a metric, a bar a server, quartiles as whiskers."""
    from matplotlib.figure import Figure

    rows = [row for row in rounds.rows if row.samples]
    figure = Figure(figsize=(11, 1.6 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(DRAWN), sharey=True)
    for axes, metric, colour in zip(panels, DRAWN, COLOURS, strict=True):
        title, scale = METRICS[metric]
        found = [summarise(values_of(row.samples, metric)) for row in rows]
        medians = [scale * each.median for each in found]
        whiskers = [
            [scale * (each.median - each.q1) for each in found],
            [scale * (each.q3 - each.median) for each in found],
        ]
        axes.barh(range(len(rows)), medians, xerr=whiskers, color=colour, capsize=3)
        axes.set_xlabel(textwrap.fill(title, 22), fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [row.label for row in rows])
    panels[0].invert_yaxis()
    figure.suptitle(textwrap.fill(record["title"], 110), fontsize=10, x=0.01, ha="left")
    figure.savefig(file, dpi=150)
