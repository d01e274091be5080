"""Sheets of our runs: in the layout of one of the paper's tables, or plainly what has run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from scripts.tables import notes
from scripts.tables.columns import are_accuracies, in_order, is_averaged, title_of
from scripts.tables.compare import VIZWIZ, Comparison, Scores, Shape
from scripts.tables.notes import of_ours, of_the_paper, unlike
from scripts.tables.paper import (
    ALPHA,
    METHOD,
    OBJECT_LAYERS,
    PRINTED,
    TABLES,
    UNPRUNED,
    VARIANTS,
    Model,
    tables_of,
)
from scripts.tables.render import to_markdown
from scripts.tables.runs import Table
from scripts.tables.sheet import Block, Sheet

Rows = dict[int | float | str, Scores]  # budget -> title of a column -> score
OF_UNPRUNED = "unpruned score"


def plain(table: Table) -> Sheet:
    """What has run of a checkpoint, the paper's rows under ours where it has them."""
    keys = _keys([table])
    titles = [title_of(key) for key in keys]
    # The paper has its rows of the method itself; of what differs it has other tables.
    known = [] if table.variant else tables_of(table.checkpoint)
    model, rows = (known[0][1], known[0][0].rows(known[0][1])) if known else (None, {})
    printed = [title for title in titles if title in rows.get(UNPRUNED, {})]
    # Where no cell of ours has one of the paper's beside it, nothing is below of the paper.
    if not printed or table.rows.keys().isdisjoint(rows):
        model, rows, printed = None, {}, []
    shape = _shape(keys, titles, model, rows)
    comparison = _comparison(shape, table.checkpoint, table, model, rows)
    below = [notes.heading(table.settings, table.limit, bool(model), OF_UNPRUNED)]
    below += notes.two_baselines(shape.vizwiz, model)
    if model and table.alpha is not None and not has_paper_settings(table, model):
        below.append(f"The paper's rows are of {notes.papers_settings([model])}.")
    blocks = tuple(
        comparison.block(b, _titled(table, b), rows.get(b), None, table.tokens(b))
        for b in _descending(table.rows)
    )
    measures = of_the_paper(printed, [model], keys, table.versions) if model else ()
    measures += of_ours([key for key in keys if title_of(key) not in printed], table.versions)
    return Sheet(
        number="",
        title=table.title,
        stub="tokens",
        headings=shape.headings,
        blocks=blocks,
        notes=(*below, *notes.unread([table])),
        measures=measures,
        settings="; ".join(table.settings),
        limit=table.limit,
        method=table.variant.get("method", METHOD),
        remark=_remark(blocks, {model: rows} if model else {}),
    )


def render(table: Table) -> str:
    """What has run of a checkpoint, as Markdown."""
    return to_markdown(plain(table))


def in_paper_layout(
    number: str,
    runs: Sequence[Table],
    limit: float | None = None,
    others: bool = False,
    method: str = METHOD,
) -> Sheet:
    """One of the paper's tables: its models, columns and budgets, whether they have run or not.

    Budgets and tasks that have run beside the paper's are added, with our numbers alone.

    Args:
        number: of TABLES.
        runs: all that have finished; those of other limits and settings are left out.
        others: add the rows of the methods that the paper compares with.
        method: whose rows: METHOD's or PLUS's.
    """
    table = TABLES[number]
    rows = {model: table.rows(model, method) for model in table.models}
    pairs = [(m, run) for m in table.models for run in paper_runs(m, runs, limit, method) or [None]]
    found = [run for _, run in pairs if run]
    versions = {version for run in found for version in run.versions}
    # What another table of the paper has is shown there, beside the paper's number.
    elsewhere = {c for run in found for t, _ in tables_of(run.checkpoint) for c in t.columns}
    extra = [key for key in _keys(found) if title_of(key) not in elsewhere]
    titles = [*table.columns, *map(title_of, extra)]
    shape = _shape(extra, titles, table.models[0], rows[table.models[0]])
    blocks: list[Block] = []
    for model, run in pairs:
        group = f"{model.name} ({', '.join([run.checkpoint, *run.apart]) if run else 'not run'})"
        comparison = _comparison(shape, group, run, model, rows[model])
        methods = table.others(model, method) if others else {}
        for budget in _descending({*rows[model], *(run.rows if run else ())}):
            ours, tokens = (_titled(run, budget), run.tokens(budget)) if run else ({}, None)
            paper, besides = rows[model].get(budget), methods.get(budget)
            blocks.append(comparison.block(budget, ours, paper, besides, tokens))
    measures = of_the_paper(table.columns, table.models, _keys(found), versions)
    settings = notes.papers_settings(table.models)
    return Sheet(
        number=number,
        title=(", ".join(model.name for model in table.models) if len(pairs) > 1 else group)
        + ("" if method == METHOD else f": {method}"),
        stub="tokens",
        headings=shape.headings,
        blocks=tuple(blocks),
        method=method,
        notes=(
            notes.heading([settings], limit, True, OF_UNPRUNED),
            *notes.two_baselines(shape.vizwiz, table.models[0]),
            notes.missing(pairs, rows, limit),
            *notes.unread(found),
        ),
        measures=measures + of_ours(extra, versions),
        settings=settings,
        limit=limit,
        remark=_remark(blocks, rows),
    )


def paper_runs(
    model: Model, runs: Iterable[Table], limit: float | None, method: str = METHOD
) -> list[Table]:
    """Of each checkpoint of a model, what ran with the method's settings in the paper, or the
    unpruned row; of what else decides a score, dtype or versions, each by itself."""
    found: dict[tuple, Table] = {}
    for run in runs:
        if run.limit != limit or not model.has(run.checkpoint):
            continue
        key = (run.checkpoint, *run.apart)
        if has_paper_settings(run, model, method):
            found[key] = run
        elif UNPRUNED in run.rows:  # it is the same for all alphas, layers and methods
            alone = replace(run, alpha=None, object_layer=None, variant={}, unread=set())
            alone.rows = {UNPRUNED: run.rows[UNPRUNED]}
            alone.counts = {UNPRUNED: run.counts.get(UNPRUNED, {})}
            found.setdefault(key, alone)
    return list(found.values())


def has_paper_settings(run: Table, model: Model, method: str = METHOD) -> bool:
    """Whether it may stand in the paper's table: its alpha and l, nothing else changed."""
    papers = (ALPHA, OBJECT_LAYERS[model.family])
    return run.variant == VARIANTS[method] and (run.alpha, run.object_layer) in (
        papers,
        (None, None),
    )


def _remark(blocks: Iterable[Block], rows: dict[Model, Rows]) -> str:
    marked = any(row.marked for block in blocks for row in block.rows)
    return notes.probably_test(rows) if marked else ""


def _keys(runs: Iterable[Table]) -> list[str]:
    return in_order(key for run in runs for row in run.rows.values() for key in row)


def _titled(run: Table, budget: int | float | str) -> Scores:
    return {title_of(key): score for key, score in run.rows.get(budget, {}).items()}


def _descending(budgets: Iterable[int | float | str]) -> list[int | float | str]:
    return sorted(budgets, key=lambda b: -float("inf") if b == UNPRUNED else -b)


def _shape(keys: Sequence[str], titles: Sequence[str], model: Model | None, rows: Rows) -> Shape:
    """The columns of a table; ``keys`` are those of ours that the paper may not have."""
    two = model is not None and model.vizwiz_val is not None and VIZWIZ in titles
    # One task's questions have a mean; benchmarks, each in its unit, have none.
    tiny = are_accuracies(keys)
    return Shape(
        titles=tuple(titles),
        averaged=frozenset(titles) - {title_of(key) for key in keys if not is_averaged(key)},
        mean=tiny and 0 < len(keys) == len(titles),
        vizwiz=rows[UNPRUNED][VIZWIZ] if two else None,
        printed=any(PRINTED in row for row in rows.values()),
    )


def _comparison(
    shape: Shape, group: str, run: Table | None, model: Model | None, rows: Rows
) -> Comparison:
    return Comparison(
        shape=shape,
        group=group,
        base=_titled(run, UNPRUNED) if run else {},
        paper_base=rows.get(UNPRUNED, {}),
        vizwiz_val=model.vizwiz_val if model else None,
        vizwiz_test=bool(model and model.vizwiz_test),
        unlike=unlike(model, _keys([run])) if model and run else frozenset(),
        limit=run.limit if run else None,
    )
