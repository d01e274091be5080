"""Tables 6 and 11 of the paper from finished runs, the paper's rows below ours; the sweeps."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hiprune import HiPruneConfig
from scripts.tables.ablations import AblationTable, tables
from scripts.tables.columns import digits_of, is_averaged, title_of
from scripts.tables.compare import average as average_over
from scripts.tables.paper import PAPER, PRINTED, short_name
from scripts.tables.render import align
from scripts.tables.runs import Table
from scripts.tables.sheet import number_text

PAPER_FILE = PAPER / "ablations_llava_1_5_7b_192.csv"
PAPER_COLUMNS = ("GQA", "MME", "POPE", "VizWiz")
PAPER_MODELS = {("llava-v1.5-7b", 192), ("llava-1.5-7b-hf", 192)}
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito's

# Key of a column -> score of the run with these fields; None where it has not finished.
Scores = Callable[[HiPruneConfig], dict[str, float] | None]


def scores_of(found: Sequence[Table], budget: int | float) -> Scores:
    """Looks a configuration up among the tables of finished runs."""

    def look_up(config: HiPruneConfig) -> dict[str, float] | None:
        table = table_of(found, config)
        return table.rows.get(budget) if table else None

    return look_up


def table_of(found: Sequence[Table], config: HiPruneConfig) -> Table | None:
    """The finished runs with a configuration, of any budget; None where there are none."""
    for table in found:
        key = (table.alpha, table.object_layer, table.variant)
        if key == (config.alpha, config.object_layer, config.variant()):
            return table
    return None


def average(row: dict[str, float] | None, base: dict[str, float] | None) -> float | None:
    """Mean over the averaged columns of 100 * score / the base's; None where one is missing."""
    if not row or not base or row.keys() != base.keys():
        return None
    counted = [key for key in base if is_averaged(key)]
    if not all(base[key] for key in counted):
        return None
    return average_over(row, base, counted)


def render(
    family: str, checkpoint: str, budget: int | float, config: Callable[..., Any], scores: Scores
) -> str:
    """Markdown of all tables that the family can have.

    Args:
        config: fields -> the configuration of a run with them.
        scores: of :func:`scores_of`.
    """
    base = scores(config()) or {}
    paper = paper_scores() if (short_name(checkpoint), budget) in PAPER_MODELS else {}
    blocks = [
        f"### {short_name(checkpoint)}, N' = {budget}: the paper's ablations",
        *(_one(table, base, paper, config, scores) for table in tables(family)),
        "avg % is the mean of 100 * score / the default's score"
        + (f", ours over {_listed(base)}; the paper's as it prints it, over all four" * bool(paper))
        + ". A dash: not run, or not printed in the paper.",
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
    titles = [title_of(task) for task in tasks]
    header = [f"Table {table.number}: {table.about}", "", *titles, "avg %"]
    lines = [header, ["---"] * len(header)]
    for row in table.rows:
        found = scores(config(**row.fields)) or {}
        lines.append([row.title, "ours", *_cells(found, tasks, average(found, base))])
        printed = paper.get((table.number, row.paper))
        if printed:
            lines.append(["", "paper", *_cells(printed, titles, printed[PRINTED])])
    return "\n".join(align(lines))


def _cells(row: dict[str, float], names: Sequence[str], percent: float | None) -> list[str]:
    cells = (number_text(row.get(name), digits_of(title_of(name))) for name in names)
    return [*cells, number_text(percent)]


def _listed(scores: dict[str, float]) -> str:
    return ", ".join(title_of(key) for key in scores if is_averaged(key))


def paper_scores() -> dict[tuple[str, str], dict[str, float]]:
    """(table, setting) -> the paper's printed scores, and its printed average."""
    with open(PAPER_FILE, newline="", encoding="utf-8") as file:
        return {
            (row["table"], row["setting"]): {
                **{name: float(row[name]) for name in PAPER_COLUMNS},
                PRINTED: float(row["avg_printed_%(vs default)"]),
            }
            for row in csv.DictReader(file)
        }


def draw_sweeps(
    swept: dict[str, tuple],
    title: str,
    unpruned: dict[str, float] | None,
    config: Callable[..., Any],
    scores: Scores,
    file: Path,
) -> bool:
    """A panel a field: % of the unpruned model over its values. False: nothing to draw.

    Args:
        swept: field -> values, of :func:`ablation_settings.sweeps`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {}
    for name, values in swept.items():
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
