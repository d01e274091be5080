"""Our scores, from the results files that finished runs of the bench scripts left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scripts.tables.columns import has_metrics, scores
from scripts.tables.paper import UNPRUNED, short_name
from scripts.tables.results import read_results


@dataclass
class Table:
    """Our scores of one checkpoint with one identity, alpha, l, variant of the method and limit.

    Attributes:
        alpha: None, like ``object_layer``, where nothing but the unpruned row has run.
        limit: samples a task that the runs were cut to; None for whole benchmarks.
        variant: what differs from the paper's method, as HiPruneConfig.variant tells it.
        rows: "unpruned" or N' -> key of a column -> score in the paper's unit.
        counts: the same -> task -> images, and visual tokens per image.
        versions: of lmms-eval, as far as the runs say.
        drawn: task and budget, in words -> answers of which lmms-eval drew a letter.
        unread: tasks that ran but whose results hold no metric of their columns.
        identity: what else decides a score, as the runs state it (bench/identity.py); {} of those
            that do not.
        told: the names in ``identity`` that differ among the tables of the checkpoint and limit,
            those that state one.
        first: alpha and l of the first table with the same checkpoint and limit; None where they
            are not known.
    """

    checkpoint: str
    alpha: float | None
    object_layer: int | None
    limit: float | None
    variant: dict[str, object] = field(default_factory=dict)
    rows: dict[int | float | str, dict[str, float]] = field(default_factory=dict)
    counts: dict[int | float | str, dict[str, tuple[int, float]]] = field(default_factory=dict)
    versions: set[str] = field(default_factory=set)
    drawn: dict[str, int] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    identity: dict[str, object] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    first: tuple[float | None, int | None] | None = None

    def tokens(self, budget: int | float | str) -> float | None:
        """Visual tokens per image that reached the language model, over all tasks of a row."""
        counts = self.counts.get(budget, {}).values()
        images = sum(n for n, _ in counts)
        return sum(n * tokens for n, tokens in counts) / images if images else None

    @property
    def title(self) -> str:
        """The checkpoint, and what tells the table from others of the same checkpoint."""
        alpha, layer = self.first or (self.alpha, self.object_layer)
        parts = [short_name(self.checkpoint)]
        parts += [] if self.alpha == alpha else [f"alpha = {self.alpha:g}"]
        parts += [] if self.object_layer == layer else [f"object layer {self.object_layer}"]
        return ", ".join([*parts, *self._variant, *self.apart])

    @property
    def settings(self) -> list[str]:
        """Alpha, l and what else was set, as a reader is told of them."""
        parts = []
        if self.alpha is not None:
            parts.append(f"alpha = {self.alpha:g}, object layer {self.object_layer}")
        return [*parts, *self._variant, *self.apart]

    @property
    def apart(self) -> list[str]:
        """What tells the table from others of the same checkpoint, beside alpha, l and method."""
        if self.told and not self.identity:
            return ["settings not stated"]
        return [f"{name} = {self.identity.get(name)}" for name in self.told]

    @property
    def _variant(self) -> list[str]:
        return [f"{name} = {value}" for name, value in self.variant.items()]


def read_tables(logs: Path, tell: Callable[[str], None] = lambda fault: None) -> list[Table]:
    """All tables that the finished runs under ``logs`` make; the newest of equal runs counts.

    Args:
        tell: called with what is wrong with each file that is left out.
    """
    results = read_results(logs, tell)
    tables: dict[tuple, Table] = {}
    for result in results:
        record = result["hiprune"]
        if record["pruned"]:
            settings = (record["alpha"], record["object_layer"])
            variant = record.get("variant", {})
            key = (*_run_key(result), *settings, *variant.items())
            _add(tables.setdefault(key, _table(result, *settings, variant)), result)
    for result in results:
        if result["hiprune"]["pruned"]:
            continue
        base = _run_key(result)
        mates = [table for key, table in tables.items() if key[: len(base)] == base]
        if not mates:  # nothing but the baseline has run so far
            mates = [tables.setdefault((*base, None, None), _table(result, None, None, {}))]
        for table in mates:
            _add(table, result)
    families: dict[tuple, list[Table]] = {}
    for table in tables.values():
        families.setdefault((table.checkpoint, table.limit), []).append(table)
    for mates in families.values():
        stated = [table.identity for table in mates if table.identity]
        names = dict.fromkeys(name for identity in stated for name in identity)
        told = tuple(n for n in names if len({str(one.get(n)) for one in stated}) > 1)
        if not told and stated and len(stated) < len(mates):
            told = ("lock",)  # one is enough to tell them from those that state nothing
        for table in mates:
            table.first = (mates[0].alpha, mates[0].object_layer)
            table.told = told
    return list(tables.values())


def _run_key(result: dict) -> tuple:
    record = result["hiprune"]
    identity = json.dumps(record.get("run", {}), sort_keys=True)
    return record["checkpoint"], result["config"]["limit"], identity


def _table(result: dict, alpha: float | None, layer: int | None, variant: dict) -> Table:
    record = result["hiprune"]
    identity = record.get("run", {})
    limit = result["config"]["limit"]
    return Table(record["checkpoint"], alpha, layer, limit, variant, identity=identity)


def _add(table: Table, result: dict) -> None:
    record = result["hiprune"]
    budget = record["retention"] if record["pruned"] else UNPRUNED
    groups = {name for name, parts in result.get("group_subtasks", {}).items() if parts}
    for task, metrics in result["results"].items():
        better = result.get("higher_is_better", {}).get(task)
        table.rows.setdefault(budget, {}).update(scores(task, metrics, better))
        if task not in groups and not has_metrics(task, metrics):
            table.unread.add(task)
        if record["images"] and (task in groups or not groups):  # counted once a run
            counted = (record["images"], record["visual_tokens_per_image"])
            table.counts.setdefault(budget, {})[task] = counted
    if record.get("letters_drawn"):
        names = ", ".join(f"`{task}`" for task in result["results"])
        table.drawn[f"{names} at {budget}"] = record["letters_drawn"]
    if "lmms_eval" in record.get("versions", {}):
        table.versions.add(record["versions"]["lmms_eval"])
