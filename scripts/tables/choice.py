"""Which tables are made: the one that is asked for, or all that the logs have runs for."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.tables.ablation_sheets import BUDGET, ablation_sheets, settings_that_ran
from scripts.tables.columns import title_of
from scripts.tables.layouts import has_paper_settings, in_paper_layout, plain
from scripts.tables.paper import PLUS, TABLES, UNPRUNED, VARIANTS, tables_of
from scripts.tables.runs import Table
from scripts.tables.sheet import Sheet

ABLATIONS = ("6", "11")  # of the paper's settings, on the model of Table 2
NUMBERS = sorted([*TABLES, *ABLATIONS], key=int)

Cell = tuple[int, int | float | str, str]  # identity of a Table, budget, key of a column


def chosen(number: str, runs: Sequence[Table], others: bool = False) -> list[Sheet]:
    """One of the paper's tables; for each LIMIT that its models ran with, whole benchmarks first.

    Where nothing of it has run it is made all the same, every cell of ours missing.
    """
    models = TABLES["2" if number in ABLATIONS else number].models
    ran = [run for run in runs if any(model.has(run.checkpoint) for model in models)]
    limits = _limits(ran) or [None]
    return [sheet for limit in limits for sheet in _sheets(number, runs, limit, others)]


def all_that_ran(runs: Sequence[Table], others: bool = False) -> list[Sheet]:
    """Every table of the paper that has a run which no table before it shows, then the rest.

    The rest is plain: checkpoints that the paper does not have, and other settings.
    """
    sheets: list[Sheet] = []
    shown: set[Cell] = set()
    for number in NUMBERS:
        for limit in _limits(runs):
            cells = _shown_by(number, [run for run in runs if run.limit == limit])
            if cells - shown:
                sheets += _sheets(number, runs, limit, others)
                shown |= cells
    for run in runs:
        cells = _cells(run)
        if not cells or cells - shown:
            sheets.append(plain(run))
    return sheets


def _sheets(number: str, runs: Sequence[Table], limit: float | None, others: bool) -> list[Sheet]:
    if number in ABLATIONS:
        return ablation_sheets(number, runs, limit)
    sheets = [in_paper_layout(number, runs, limit, others)]
    models = TABLES[number].models
    ours = [run for run in runs if run.limit == limit]
    if any(
        has_paper_settings(run, m, PLUS) for m in models for run in ours if m.has(run.checkpoint)
    ):
        sheets.append(in_paper_layout(number, runs, limit, others, PLUS))
    return sheets


def _limits(runs: Sequence[Table]) -> list[float | None]:
    return sorted({run.limit for run in runs}, key=lambda limit: -1 if limit is None else limit)


def _cells(run: Table) -> set[Cell]:
    """What a table has to show of a run; an unpruned row is of all settings alike."""
    pruned = [budget for budget in run.rows if budget != UNPRUNED]
    return {(id(run), budget, key) for budget in pruned or run.rows for key in run.rows[budget]}


def _shown_by(number: str, runs: Sequence[Table]) -> set[Cell]:
    """What one of the paper's tables shows of the runs of one limit."""
    if number in ABLATIONS:
        # Settings other than the default have a variant, or an alpha of their own.
        if not any(TABLES["2"].models[0].has(run.checkpoint) for run in runs):
            return set()
        found = settings_that_ran(number, runs)
        return {cell for run in found for cell in _cells(run) if cell[1] == BUDGET}
    cells: set[Cell] = set()
    for run in runs:
        model = next((m for t, m in tables_of(run.checkpoint) if t.number == number), None)
        if model is None or not any(has_paper_settings(run, model, m) for m in VARIANTS):
            continue
        others = {c for t, _ in tables_of(run.checkpoint) if t.number != number for c in t.columns}
        elsewhere = others - set(TABLES[number].columns)
        cells |= {cell for cell in _cells(run) if title_of(cell[2]) not in elsewhere}
    return cells
