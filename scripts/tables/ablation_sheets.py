"""The paper's tables of ablations, 6 and 11: a block a setting, ours beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hiprune import HiPruneConfig
from scripts.benchmarks import BENCHMARKS
from scripts.tables import notes
from scripts.tables.ablations import PAPER_COLUMNS, AblationTable, paper_scores, table_of
from scripts.tables.ablations import TABLES as SETTINGS
from scripts.tables.ablations import Row as Setting
from scripts.tables.columns import in_order, title_of
from scripts.tables.compare import Comparison, Shape
from scripts.tables.notes import of_ours, of_the_paper, unlike
from scripts.tables.paper import OBJECT_LAYERS, TABLES
from scripts.tables.runs import Table
from scripts.tables.sheet import Block, Sheet

BUDGET = 192  # the paper's ablations are of one budget, and of this model
MODEL = TABLES["2"].models[0]
DEFAULT = HiPruneConfig(BUDGET, object_layer=OBJECT_LAYERS[MODEL.family])


def ablation_sheets(number: str, runs: Sequence[Table], limit: float | None) -> list[Sheet]:
    """Table 6 or 11, one for each checkpoint that ran, and each dtype and the like; with no cell of
    ours where none did.

    Args:
        number: "6" or "11".
        runs: all that have finished; those of other limits are left out.
    """
    found = [run for run in runs if run.limit == limit and MODEL.has(run.checkpoint)]
    groups: dict[tuple, list[Table]] = {}
    for run in found:
        groups.setdefault((run.checkpoint, *run.apart), []).append(run)
    return [_sheet(number, runs, limit) for runs in groups.values() or [[]]]


def settings_that_ran(number: str, runs: Sequence[Table]) -> list[Table]:
    """Runs that only a table of ablations shows: of its budget and settings, but the default."""
    rows = [row for table in _tables(number) for row in table.rows if row.fields]
    wanted = [_key(replace(DEFAULT, **row.fields)) for row in rows]
    return [
        run
        for run in runs
        if MODEL.has(run.checkpoint)
        and (run.alpha, run.object_layer, run.variant) in wanted
        and BUDGET in run.rows
    ]


def _tables(number: str) -> list[AblationTable]:
    """Table 6 has the parts 6a, 6b and 6c."""
    return [table for table in SETTINGS if table.number.rstrip("abc") == number]


def _key(config: HiPruneConfig) -> tuple:
    return config.alpha, config.object_layer, config.variant()


def _sheet(number: str, runs: Sequence[Table], limit: float | None) -> Sheet:
    """Of runs of one checkpoint that differ in alpha, l and method alone; of none, too."""
    checkpoint = runs[0].checkpoint if runs else None
    name = ", ".join([checkpoint, *runs[0].apart]) if checkpoint else "not run"
    ran = settings_that_ran(number, runs)
    keys = in_order(key for run in ran for key in run.rows[BUDGET])
    extra = [key for key in keys if title_of(key) not in PAPER_COLUMNS]
    titles = (*PAPER_COLUMNS, *map(title_of, extra))
    shape = Shape(titles, frozenset(titles), printed=True)
    paper = paper_scores()
    blocks: list[Block] = []
    empty = False
    for table in _tables(number):
        comparison = Comparison(
            shape=shape,
            group=f"{table.number}: {table.about}",
            base=_scores(runs, DEFAULT),
            paper_base=next(paper[table.number, r.paper] for r in table.rows if not r.fields),
            unlike=unlike(MODEL, keys),
            limit=limit,
        )
        for row in table.rows:
            blocks.append(_block(comparison, runs, row, paper[table.number, row.paper]))
            empty = empty or not set(PAPER_COLUMNS) <= _scores(runs, _config(row)).keys()
    versions = {version for run in ran for version in run.versions}
    settings = f"N' = {BUDGET}, otherwise {notes.papers_settings([MODEL])}"
    return Sheet(
        number=number,
        title=f"ablations, {MODEL.name} ({name})",
        stub="setting",
        headings=shape.headings,
        blocks=tuple(blocks),
        notes=(
            notes.heading([settings], limit, True, "score of the default setting"),
            notes.dash([_command(checkpoint or MODEL.checkpoints[0], limit)] * empty),
            *notes.unread(ran),
        ),
        measures=of_the_paper(PAPER_COLUMNS, [MODEL], keys, versions) + of_ours(extra, versions),
        settings=settings,
        limit=limit,
    )


def _command(checkpoint: str, limit: float | None) -> str:
    family = "llava_hf" if notes.is_hf(checkpoint) else "llava"
    variables = notes.variables(checkpoint, BENCHMARKS[family].checkpoint, limit)
    return " ".join([*variables, f"bash scripts/ablation.sh --model {family}"])


def _config(row: Setting) -> HiPruneConfig:
    return replace(DEFAULT, **row.fields)


def _scores(runs: Sequence[Table], config: HiPruneConfig) -> dict[str, float]:
    """Title of a column -> score; empty where the setting has not run."""
    table = table_of(runs, config)
    found = table.rows.get(BUDGET, {}) if table else {}
    return {title_of(key): score for key, score in found.items()}


def _block(
    comparison: Comparison, runs: Sequence[Table], row: Setting, paper: dict[str, float]
) -> Block:
    config = _config(row)
    table = table_of(runs, config)
    tokens = table.tokens(BUDGET) if table else None
    ours = _scores(runs, config)
    return replace(comparison.block(BUDGET, ours, paper, tokens=tokens), label=row.title)
