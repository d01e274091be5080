"""Finished runs of ablation.sh and methods.sh: tables beside the paper's, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from hiprune.figures.colours import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, SKY, VERMILION, tidy
from scripts.tables.ablations import PAPER_MODELS, AblationTable, Scores, paper_scores, tables
from scripts.tables.columns import digits_of, in_order, is_averaged, title_of
from scripts.tables.compare import average as average_over
from scripts.tables.paper import PRINTED, short_name
from scripts.tables.render import markdown
from scripts.tables.runs import Table
from scripts.tables.sheet import number_text

Row = dict[str, float]  # key of a column -> score
NAMES = {
    "hiprune": "HiPrune",
    "hiprune_pp": "HiPrune++",
    "cls": "CLS attention",
    "uniform": "uniform",
    "random": "random",
    "vispruner": "VisPruner",
    "scope": "SCOPE",
    "divprune": "DivPrune",
    "visionzip": "VisionZip",
    "cdpruner": "CDPruner",
}
# A marker each, so that no line hangs on its colour alone; colours that come twice are dashed once.
STYLES = {
    "hiprune": (BLUE, "o", "-"),
    "cls": (VERMILION, "s", "-"),
    "uniform": (GREEN, "^", "-"),
    "random": (GREY, "D", "-"),
    "hiprune_pp": (BLUE, "*", "--"),
    "vispruner": (PINK, "v", "-"),
    "scope": (ORANGE, "<", "-"),
    "divprune": (SKY, ">", "-"),
    "visionzip": (BLACK, "x", "-"),
    "cdpruner": (GREEN, "P", "--"),
}


@dataclass(frozen=True)
class Curve:
    """One method.

    Attributes:
        method: as HIPRUNE_METHOD names it.
        rows: budget -> the scores of each finished run (`random` has one a seed).
        tokens: budget -> visual tokens an image that reached the language model.
    """

    method: str
    rows: dict[int | float, list[Row]]
    tokens: dict[int | float, float | None]


def curve_of(method: str, tables: Sequence[Table | None], budgets: Sequence[int | float]) -> Curve:
    """Of the tables of a method's configurations; None is one that has not run."""
    ran = [table for table in tables if table]
    rows = {b: [t.rows[b] for t in ran if b in t.rows] for b in budgets}
    tokens = {b: next((t.tokens(b) for t in ran if b in t.rows), None) for b in budgets}
    return Curve(method, rows, tokens)


def average(row: dict[str, float] | None, base: dict[str, float] | None) -> float | None:
    """Mean over the averaged columns of 100 * score / the base's; None where one is missing."""
    if not row or not base or row.keys() != base.keys():
        return None
    counted = [key for key in base if is_averaged(key)]
    if not all(base[key] for key in counted):
        return None
    return average_over(row, base, counted)


def render_ablations(
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
        *(_ablation(table, base, paper, config, scores) for table in tables(family)),
        "avg % is the mean of 100 * score / the default's score"
        + (f", ours over {_listed(base)}; the paper's as it prints it, over all four" * bool(paper))
        + ". A dash: not run, or not printed in the paper.",
    ]
    return "\n\n".join(blocks)


def _ablation(
    table: AblationTable,
    base: dict[str, float],
    paper: dict[tuple[str, str], dict[str, float]],
    config: Callable[..., Any],
    scores: Scores,
) -> str:
    tasks = list(base)
    titles = [title_of(task) for task in tasks]
    header = [f"Table {table.number}: {table.about}", "", *titles, "avg %"]
    lines = []
    for row in table.rows:
        found = scores(config(**row.fields)) or {}
        lines.append([row.title, "ours", *_cells(found, tasks, average(found, base))])
        printed = paper.get((table.number, row.paper))
        if printed:
            lines.append(["", "paper", *_cells(printed, titles, printed[PRINTED])])
    return markdown(header, lines)


def _cells(row: dict[str, float], names: Sequence[str], percent: float | None) -> list[str]:
    cells = (number_text(row.get(name), digits_of(title_of(name))) for name in names)
    return [*cells, number_text(percent)]


def _listed(scores: dict[str, float]) -> str:
    return ", ".join(title_of(key) for key in scores if is_averaged(key))


def score(row: Row, base: Row, accuracies: bool) -> float | None:
    """One number of a run: the mean accuracy, or the mean of 100 * score / unpruned score."""
    if not accuracies:
        return average(row, base)
    counted = [key for key in base if is_averaged(key)]
    return mean(row[key] for key in counted) if counted and row.keys() == base.keys() else None


def render_methods(name: str, base: Row, curves: list[Curve], accuracies: bool) -> str:
    """Markdown: a row a method and budget; of several runs their mean and, last, their range.

    Args:
        base: the unpruned scores.
        accuracies: all columns are accuracies in %, so that their mean says something.
    """
    keys = in_order(base)
    header = ["tokens", "method", *map(title_of, keys), "mean" if accuracies else "avg %", "range"]
    full = score(base, base, accuracies)
    lines = [["all", "unpruned", *_means([base], keys), number_text(full), ""]]
    for budget in next(iter(curves)).rows:
        for curve in curves:
            rows = curve.rows[budget]
            found = [s for s in (score(row, base, accuracies) for row in rows) if s is not None]
            cells = [number_text(mean(found) if found else None), _range(found)]
            lines.append([str(budget), name_of(curve), *_means(rows, keys), *cells])
    what = "the mean of the columns but F1" if accuracies else "the mean of 100 * score / unpruned"
    notes = (
        f"{'mean' if accuracies else 'avg %'} is {what}. `random`: the mean of its seeds, and the "
        "range from the worst to the best. All but HiPrune are this repository's own "
        "implementations, with the same budget and patch."
    )
    return "\n".join([f"### {name}: methods over budgets", "", markdown(header, lines), "", notes])


def name_of(curve: Curve) -> str:
    seeds = max(map(len, curve.rows.values()), default=0)
    return NAMES[curve.method] + (f" ({seeds} seeds)" if seeds > 1 else "")


def _means(rows: list[Row], keys: list[str]) -> list[str]:
    """Of each column, over the runs; none where one of them lacks it."""
    means = {
        key: mean(row[key] for row in rows)
        for key in keys
        if rows and all(key in row for row in rows)
    }
    return [number_text(means.get(key), digits_of(title_of(key))) for key in keys]


def _range(found: list[float]) -> str:
    return f"{min(found):.1f} to {max(found):.1f}" if len(found) > 1 else ""


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
        swept: field -> values, of ablations.sweeps.
    """
    from matplotlib.figure import Figure

    panels = {}
    for name, values in swept.items():
        points = [(v, average(scores(config(**{name: v})), unpruned)) for v in values]
        panels[name] = [(value, score) for value, score in points if score is not None]
    if not any(panels.values()):
        return False
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    labels = {"alpha": "alpha, share of anchors plus buffers", "object_layer": "object layer l"}
    for axis, (name, points) in zip(axes, panels.items(), strict=True):
        axis.plot(*zip(*points, strict=True), marker="o", color=BLUE) if points else None
        axis.axvline(getattr(config(), name), color=VERMILION, linestyle="--", label="default")
        axis.axhline(100, color=GREY, linewidth=0.8, label="unpruned")
        tidy(axis, "", labels[name], "% of the unpruned model" * (axis is axes[0]))
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.savefig(file, dpi=150)
    return True


def draw_methods(title: str, base: Row, curves: list[Curve], accuracies: bool, file: Path) -> bool:
    """A line a method over the tokens that reached the LLM. False: nothing to draw."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    ticks: set[float] = set()
    for curve in curves:
        points = []
        for budget, rows in curve.rows.items():
            found = [s for s in (score(row, base, accuracies) for row in rows) if s is not None]
            tokens = curve.tokens.get(budget)
            if found and tokens:
                points.append((tokens, mean(found), min(found), max(found)))
        if not points:
            continue
        x, middle, low, high = zip(*sorted(points), strict=True)
        colour, marker, line = STYLES[curve.method]
        first = 3 if curve.method == "hiprune" else 2  # on top of what it coincides with
        label = name_of(curve)
        axis.plot(x, middle, line, color=colour, marker=marker, label=label, zorder=first)
        if low != high:
            axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        ticks |= set(x)
    if not ticks:
        return False
    full = score(base, base, accuracies)
    axis.axhline(full, color="black", linestyle="--", linewidth=1, label=f"unpruned, {full:.1f}")
    axis.set_xscale("log")
    axis.set_xticks(sorted(ticks), [f"{tick:.0f}" for tick in sorted(ticks)])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    score_name = "mean accuracy, %" if accuracies else "% of the unpruned model"
    tidy(axis, title, "visual tokens an image in the language model", score_name)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(file, dpi=150)
    return True
