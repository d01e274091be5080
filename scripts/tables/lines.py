"""Sheets as CSV: one line for each number, so that no layout has to be known to read it.

=================== ==============================================================================
table               the paper's number of the table; empty for a table of ours
title               its title
group               the model and its checkpoint, or the part of the table
row                 "unpruned", N' (tokens), the share of the tokens (0.334), or an ablation's name
method              "unpruned"; "HiPrune", or in a table of ours "uniform", "random" or "cls"; or
                    the method that the paper compares with
column              as in results/paper/*.csv; or "avg %" and the like, counts, tokens
ours                our number in the paper's unit; empty where it has not run
paper               the paper's; empty where it prints none
difference          ours minus the paper's; empty where one is missing or they do not compare
settings            alpha, l and what else our runs were made with
limit               samples a task that our runs were cut to; empty for whole benchmarks
ours_measured_by    harness, task and metric of our number
paper_measured_by   of the paper's, as far as it is known
note                what else is to be known of the number; mostly empty
=================== ==============================================================================

Numbers are as measured, not rounded. A row's averages are over as many columns as its row with the
column "columns" says.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from scripts.tables.paper import UNPRUNED
from scripts.tables.sheet import DIFFERENCE, OTHER, OURS, PAPER, Block, Sheet

HEADER = (
    "table", "title", "group", "row", "method", "column", "ours", "paper", "difference",
    "settings", "limit", "ours_measured_by", "paper_measured_by", "note",
)  # fmt: skip


def to_csv(sheets: Sequence[Sheet]) -> str:
    """All sheets in one file, under one header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for sheet in sheets:
        for block in sheet.blocks:
            writer.writerows(_lines(sheet, block))
    return text.getvalue().rstrip("\n")


def _lines(sheet: Sheet, block: Block) -> list[list[str]]:
    measures = {measure.title: measure for measure in sheet.measures}
    mine = UNPRUNED if block.label == UNPRUNED else sheet.method
    # Method -> kind of a row -> the row; other methods have the paper's alone.
    sources = {mine: {row.kind: row for row in block.rows if row.kind != OTHER}}
    sources |= {row.name: {PAPER: row} for row in block.rows if row.kind == OTHER}
    limit = "" if sheet.limit is None else f"{sheet.limit:g}"
    lines = []
    for method, rows in sources.items():
        for index, heading in enumerate(sheet.headings):
            numbers = [
                _number(rows[kind].cells[index] if kind in rows else None)
                for kind in (OURS, PAPER, DIFFERENCE)
            ]
            measure = measures.get(heading.title)
            by = [measure.ours, measure.paper] if measure else ["", ""]
            if method != mine:
                by[0] = ""
            note = sheet.remark if any(index in row.marked for row in rows.values()) else ""
            where = [sheet.number, sheet.title, block.group, block.label, method, heading.title]
            lines.append([*where, *numbers, sheet.settings, limit, *by, note])
    return lines


def _number(value: float | None) -> str:
    # Ten digits: all that was measured, and none of what adding floats leaves behind.
    return "" if value is None else f"{value:.10g}"
