"""Methods over budgets: one table and one picture from finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from scripts.tables.columns import digits_of, in_order, is_averaged, title_of
from scripts.tables.render import align
from scripts.tables.sheet import MISSING
from scripts.tables.sweeps import average

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
# Okabe and Ito's, and a marker each, so that no line hangs on its colour alone.
STYLES = {
    "hiprune": ("#0072B2", "o"),
    "cls": ("#D55E00", "s"),
    "uniform": ("#009E73", "^"),
    "random": ("#666666", "D"),
    "hiprune_pp": ("#0072B2", "*"),
    "vispruner": ("#CC79A7", "v"),
    "scope": ("#E69F00", "<"),
    "divprune": ("#56B4E9", ">"),
    "visionzip": ("#000000", "x"),
    "cdpruner": ("#009E73", "P"),
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


def score(row: Row, base: Row, accuracies: bool) -> float | None:
    """One number of a run: the mean accuracy, or the mean of 100 * score / unpruned score."""
    if not accuracies:
        return average(row, base)
    counted = [key for key in base if is_averaged(key)]
    return mean(row[key] for key in counted) if counted and row.keys() == base.keys() else None


def render(name: str, base: Row, curves: list[Curve], accuracies: bool) -> str:
    """Markdown: a row a method and budget; of several runs their mean and, last, their range.

    Args:
        base: the unpruned scores.
        accuracies: all columns are accuracies in %, so that their mean says something.
    """
    keys = in_order(base)
    header = ["tokens", "method", *map(title_of, keys), "mean" if accuracies else "avg %", "range"]
    full = score(base, base, accuracies)
    lines = [header, ["---"] * len(header), ["all", "unpruned", *_cells([base], keys), _text(full)]]
    lines[-1].append("")
    for budget in next(iter(curves)).rows:
        for curve in curves:
            rows = curve.rows[budget]
            found = [s for s in (score(row, base, accuracies) for row in rows) if s is not None]
            cells = [_text(mean(found) if found else None), _range(found)]
            lines.append([str(budget), _name(curve), *_cells(rows, keys), *cells])
    what = "the mean of the columns but F1" if accuracies else "the mean of 100 * score / unpruned"
    notes = (
        f"{'mean' if accuracies else 'avg %'} is {what}. `random`: the mean of its seeds, and the "
        "range from the worst to the best. All but HiPrune are this repository's own "
        "implementations, with the same budget and patch."
    )
    return "\n".join([f"### {name}: methods over budgets", "", *align(lines), "", notes])


def _name(curve: Curve) -> str:
    seeds = max(map(len, curve.rows.values()), default=0)
    return NAMES[curve.method] + (f" ({seeds} seeds)" if seeds > 1 else "")


def _cells(rows: list[Row], keys: list[str]) -> list[str]:
    return [
        _text(
            mean(row[key] for row in rows) if rows and all(key in row for row in rows) else None,
            digits_of(title_of(key)),
        )
        for key in keys
    ]


def _text(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _range(found: list[float]) -> str:
    return f"{min(found):.1f} to {max(found):.1f}" if len(found) > 1 else ""


def draw(title: str, base: Row, curves: list[Curve], accuracies: bool, file: Path) -> bool:
    """A line a method over the tokens that reached the LLM. False: nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, NullLocator

    figure, axis = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
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
        colour, marker = STYLES[curve.method]
        axis.plot(x, middle, color=colour, marker=marker, label=_name(curve))
        if low != high:
            axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        ticks |= set(x)
    if not ticks:
        pyplot.close(figure)
        return False
    full = score(base, base, accuracies)
    axis.axhline(full, color="black", linestyle="--", linewidth=1, label=f"unpruned, {full:.1f}")
    axis.set_xscale("log")
    axis.set_xticks(sorted(ticks), [f"{tick:.0f}" for tick in sorted(ticks)])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("visual tokens an image in the language model")
    axis.set_ylabel("mean accuracy, %" if accuracies else "% of the unpruned model")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    axis.set_title(title, fontsize=10, loc="left")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
    return True
