"""Tables 6 and 11 of the paper from finished runs, the paper's rows below ours; the sweeps."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ablation_settings import AblationTable, sweeps, tables
from benchmarks import COLUMNS
from make_tables import MISSING, Table, align
from paper import PAPER, short_name

from hiprune import HiPruneConfig

PAPER_FILE = PAPER / "ablations_llava_1_5_7b_192.csv"
PAPER_MODELS = {("llava-v1.5-7b", 192), ("llava-1.5-7b-hf", 192)}
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito's

# Task -> score of the run with these fields; None where it has not finished.
Scores = Callable[[HiPruneConfig], dict[str, float] | None]


def scores_of(found: Sequence[Table], budget: int | float) -> Scores:
    """Looks a configuration up among the tables of finished runs."""

    def look_up(config: HiPruneConfig) -> dict[str, float] | None:
        for table in found:
            key = (table.alpha, table.object_layer, table.variant)
            if key == (config.alpha, config.object_layer, config.variant()):
                return table.rows.get(budget)
        return None

    return look_up


def average(row: dict[str, float] | None, base: dict[str, float] | None) -> float | None:
    """Mean over the tasks of 100 * score / the base's; None where a task is missing."""
    if not row or not base or row.keys() != base.keys() or not all(base.values()):
        return None
    return sum(100 * row[task] / base[task] for task in base) / len(base)


def render(
    family: str, checkpoint: str, budget: int | float, config: Callable[..., Any], scores: Scores
) -> str:
    """Markdown of all tables that the family can have.

    Args:
        config: fields -> the configuration of a run with them.
        scores: of :func:`scores_of`.
    """
    base = scores(config()) or {}
    paper = _paper() if (short_name(checkpoint), budget) in PAPER_MODELS else {}
    blocks = [
        f"### {short_name(checkpoint)}, N' = {budget}: the paper's ablations",
        *(_one(table, base, paper, config, scores) for table in tables(family)),
        "avg % is the mean of 100 * score / the default's score. A dash: not run, or not printed "
        "in the paper.",
    ]
    return "\n\n".join(blocks)


def _one(
    table: AblationTable,
    base: dict[str, float],
    paper: dict[tuple[str, str], dict[str, float]],
    config: Callable[..., Any],
    scores: Scores,
) -> str:
    tasks = list(base)
    titles = [COLUMNS[task].title if task in COLUMNS else task for task in tasks]
    header = [f"Table {table.number}: {table.about}", "", *titles, "avg %"]
    lines = [header, ["---"] * len(header)]
    for row in table.rows:
        found = scores(config(**row.fields)) or {}
        lines.append([row.title, "ours", *_cells(found, tasks), _percent(average(found, base))])
        printed = paper.get((table.number, row.paper))
        if printed:
            lines.append(["", "paper", *_cells(printed, titles), _percent(printed["avg"])])
    return "\n".join(align(lines))


def _cells(row: dict[str, float], names: Sequence[str]) -> list[str]:
    return [f"{row[name]:.1f}" if name in row else MISSING for name in names]


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"


def _paper() -> dict[tuple[str, str], dict[str, float]]:
    """(table, setting) -> the paper's printed scores, and its printed average."""
    with open(PAPER_FILE, newline="", encoding="utf-8") as file:
        return {
            (row["table"], row["setting"]): {
                **{name: float(row[name]) for name in ("GQA", "MME", "POPE", "VizWiz")},
                "avg": float(row["avg_printed_%(vs default)"]),
            }
            for row in csv.DictReader(file)
        }


def draw_sweeps(
    family: str,
    title: str,
    unpruned: dict[str, float] | None,
    config: Callable[..., Any],
    scores: Scores,
    file: Path,
) -> bool:
    """A panel a field: % of the unpruned model over its values. False: nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {}
    for name, values in sweeps(family).items():
        points = [(v, average(scores(config(**{name: v})), unpruned)) for v in values]
        panels[name] = [(value, score) for value, score in points if score is not None]
    if not any(panels.values()):
        return False
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(9, 3.4), sharey=True, layout="constrained"
    )
    labels = {"alpha": "alpha, share of anchors plus buffers", "object_layer": "object layer l"}
    for axis, (name, points) in zip(axes, panels.items(), strict=True):
        axis.plot(*zip(*points, strict=True), marker="o", color=BLUE) if points else None
        axis.axvline(getattr(config(), name), color=ORANGE, linestyle="--", label="default")
        axis.axhline(100, color=GREY, linewidth=0.8, label="unpruned")
        axis.set_xlabel(labels[name])
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("% of the unpruned model")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
    return True
