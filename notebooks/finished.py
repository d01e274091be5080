"""Finished benchmark runs as the curves and sweeps that scripts/ draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import paths
from IPython.display import Image, Markdown, display

from hiprune import HiPruneConfig
from hiprune.config import FAMILIES
from scripts.bench.methods import SEEDS, can_run
from scripts.benchmarks import BENCHMARKS, Benchmark
from scripts.tables.ablations import all_fields, scores_of, sweeps, table_of
from scripts.tables.paper import UNPRUNED, short_name, tables_of
from scripts.tables.results import KEPT
from scripts.tables.runs import Table, read_tables
from scripts.tables.summaries import (
    NAMES,
    Curve,
    curve_of,
    draw_methods,
    draw_sweeps,
    render_ablations,
    render_methods,
)


@dataclass(frozen=True)
class Finished:
    """All finished runs of one checkpoint with one limit.

    Attributes:
        benchmark: that they are of.
        tiny: whether the checkpoint is the small trained one.
    """

    checkpoint: str
    limit: float | None
    tables: list[Table]
    benchmark: Benchmark
    tiny: bool

    @property
    def title(self) -> str:
        cut = f", first {self.limit:g} samples" if self.limit else ""
        return f"{short_name(self.checkpoint)}{cut}"

    @property
    def unpruned(self) -> dict[str, float] | None:
        return next((t.rows[UNPRUNED] for t in self.tables if UNPRUNED in t.rows), None)

    @property
    def samples(self) -> int | None:
        """Answers in the unpruned run, over all tasks; one an image that it was given."""
        counts = next((t.counts.get(UNPRUNED) for t in self.tables if UNPRUNED in t.rows), None)
        return sum(n for n, _ in counts.values()) if counts else None

    @property
    def object_layer(self) -> int:
        tiny = self.benchmark.tiny.object_layer
        return tiny if self.tiny else FAMILIES[self.benchmark.family].object_layer

    def config(self, **fields: object) -> HiPruneConfig:
        return HiPruneConfig(**{"object_layer": self.object_layer, **fields})

    def curves(self) -> list[Curve]:
        """A method each, those that have run."""
        seeds = {t.variant.get("seed", 0) for t in self.tables if t.variant.get("method")}
        ran: dict[str, list[Table]] = {}
        for method in NAMES:
            configs = [self.config(method=method)]
            if method == "random":
                configs = [replace(configs[0], seed=seed) for seed in sorted(seeds)]
            tables = [t for t in (table_of(self.tables, config) for config in configs) if t]
            if any(budget != UNPRUNED for table in tables for budget in table.rows):
                ran[method] = tables
        budgets = {b for tables in ran.values() for t in tables for b in t.rows if b != UNPRUNED}
        budgets = sorted(budgets, reverse=True)
        return [curve_of(method, tables, budgets) for method, tables in ran.items()]

    def curves_lack(self) -> list[str]:
        """What scripts/methods.sh would still run, a method each."""
        budgets = self.benchmark.tiny.curve if self.tiny else self.benchmark.retentions
        rows = {curve.method: curve.rows for curve in self.curves()}
        found = []
        for method, name in NAMES.items():
            if not can_run(self.benchmark.family, self.tiny, self.config(method=method)):
                continue
            runs = len(SEEDS) if method == "random" else 1
            lacking = {b: runs - len(rows.get(method, {}).get(b, ())) for b in budgets}
            which = f" ({{}} of {runs} seeds)" if runs > 1 else ""
            cells = [f"{b}{which.format(n)}" for b, n in lacking.items() if n > 0]
            if cells:
                found.append(f"{name} at {', '.join(cells)}" if method in rows else name)
        return found

    def budget_of_ablation(self) -> int | float | None:
        """The budget with most of the settings that the ablation goes through, if it ran."""
        changed = [t for t in self.tables if t.rows and "method" not in t.variant]
        budgets = [b for t in changed for b in t.rows if b != UNPRUNED]
        best = max(budgets, key=budgets.count, default=None)
        return best if budgets.count(best) > 1 else None


def read_finished(logs: str | None = None) -> tuple[list[Finished], str]:
    """What is under a folder, and the folder, as a reader is told of it.

    Args:
        logs: the folder; unless given the variable LOGS, else results/tiny if runs are kept there,
            else `logs`.
    """
    folder = Path(logs) if logs else paths.variable("LOGS")
    if folder is None:
        folder = paths.ROOT / "results" / "tiny"
        if not any(folder.rglob(KEPT)):
            folder = paths.ROOT / "logs"
    groups: dict[tuple, list[Table]] = {}
    for table in read_tables(folder):
        groups.setdefault((table.checkpoint, table.limit), []).append(table)
    found = [_finished(*key, tables) for key, tables in groups.items()]
    return [group for group in found if group], paths.shown(folder)


def show_curves(group: Finished) -> bool:
    """The table of the methods over budgets and its picture. False: nothing to show."""
    base, curves = group.unpruned, group.curves()
    if not base or not curves:
        return False
    title = f"{group.title}: score over kept tokens"
    lack = group.curves_lack()
    _show(lambda file: draw_methods(title, base, curves, group.tiny, file), title, group, lack)
    display(Markdown(render_methods(group.title, base, curves, group.tiny)))
    return True


def show_sweeps(group: Finished) -> bool:
    """The ablation's tables and the sweeps' picture. False: nothing to show."""
    budget = group.budget_of_ablation()
    if budget is None or not group.unpruned:
        return False
    scores = scores_of(group.tables, budget)
    swept = sweeps(group.benchmark, group.tiny, group.object_layer)
    title = f"{group.title}, N' = {budget}: alpha and the object layer"

    def draw(file: Path) -> bool:
        return draw_sweeps(swept, title, group.unpruned, group.config, scores, file)

    family, lack = group.benchmark.family, []
    for fields in all_fields(family, swept, group.object_layer):
        if scores(group.config(**fields)) is None:
            lack += [f"{name} {value}" for name, value in fields.items()] or ["the default"]
    _show(draw, title, group, lack)
    text = render_ablations(family, group.checkpoint, budget, group.config, scores)
    display(Markdown(text))
    return True


def _show(draw: Callable[[Path], bool], title: str, group: Finished, lack: list[str]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "figure.png"
        if draw(file):
            caption = f"*{title}; {group.samples} answers a run.*"
            caption += f" Incomplete, not run yet: {'; '.join(lack)}." if lack else ""
            display(Image(file.read_bytes(), format="png", width=720, alt=title), Markdown(caption))


def _finished(checkpoint: str, limit: float | None, tables: list[Table]) -> Finished | None:
    """None: of a model that no benchmark is of."""
    name = short_name(checkpoint)
    for benchmark in BENCHMARKS.values():
        if name in (benchmark.tiny.checkpoint.name, benchmark.tiny.asset):
            return Finished(checkpoint, limit, tables, benchmark, tiny=True)
    families = [short_name(b.checkpoint) for b in BENCHMARKS.values()]
    for benchmark, released in zip(BENCHMARKS.values(), families, strict=True):
        models = [model for _, model in tables_of(checkpoint)]
        if name == released or any(m.family == benchmark.family for m in models):
            return Finished(checkpoint, limit, tables, benchmark, tiny=False)
    return None
