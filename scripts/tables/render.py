"""Sheets as text: Markdown, LaTeX, and CSV of one line a number."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace

import tabulate

from scripts.tables.paper import UNPRUNED
from scripts.tables.sheet import (
    DIFFERENCE,
    MARK,
    MISSING,
    OTHER,
    OURS,
    PAPER,
    Block,
    Measure,
    Sheet,
    cell_text,
    row_name,
)

tabulate.MIN_PADDING = 0  # else headers are set wider than they are
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    MISSING: "--",
    MARK: r"\dag{}",
}
HEADER = (
    "table", "title", "group", "row", "method", "column", "ours", "paper", "difference",
    "settings", "limit", "ours_measured_by", "paper_measured_by", "note",
)  # fmt: skip


def all_to_markdown(sheets: Sequence[Sheet]) -> str:
    """Section after section; a column that is measured as one above is not told of again."""
    told: set[Measure] = set()
    sections = []
    for sheet in sheets:
        new = tuple(measure for measure in sheet.measures if measure not in told)
        sections.append(to_markdown(replace(sheet, measures=new)))
        told.update(new)
    return "\n\n".join(sections)


def to_markdown(sheet: Sheet) -> str:
    """A section: title, table, notes, and a line on each column."""
    header = [sheet.stub, "", *(heading.title for heading in sheet.headings)]
    lines: list[list[str]] = []
    group = None
    for block in sheet.blocks:
        # A table of one model has its name in the title or the notes.
        if len(sheet.groups) > 1 and block.group != group:
            lines.append([f"**{block.group}**", *[""] * (len(header) - 1)])
        group = block.group
        for index, row in enumerate(block.rows):
            cells = [cell_text(row, i, heading) for i, heading in enumerate(sheet.headings)]
            lines.append(["" if index else block.label, row_name(row), *cells])
    parts = [f"### {title(sheet)}", "", markdown(header, lines), "", *sheet.below]
    if sheet.measures:
        parts += ["", "Columns:", "", *(_measure(measure) for measure in sheet.measures)]
    return "\n".join(parts)


def title(sheet: Sheet) -> str:
    """With the paper's number, and what a limit makes of the scores, where there are such."""
    text = f"Table {sheet.number}: {sheet.title}" if sheet.number else sheet.title
    if sheet.limit is not None:
        text += f", LIMIT = {sheet.limit:g} samples a task"
    return text


def measure_text(measure: Measure) -> str:
    """Ours and the paper's in one line."""
    return f"ours: {measure.ours}" + (f". Paper: {measure.paper}" if measure.paper else "")


def _measure(measure: Measure) -> str:
    return f"- {measure.title}, {measure_text(measure)}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], right: bool = False) -> str:
    """A table, its columns aligned for a terminal as well: to the left, or to the right."""
    form = {"tablefmt": "pipe", "colalign": ["right"] * len(header)} if right else {}
    form = {"tablefmt": "github", "disable_numparse": True} | form
    return tabulate.tabulate(rows, header, **form)


def to_latex(sheet: Sheet) -> str:
    """A table environment: caption, rows between booktabs' rules, notes below."""
    width = len(sheet.headings) + 2
    lines = [
        r"% needs \usepackage{booktabs}; tables with all columns want a page of 18 cm or more",
        r"\begin{table}",
        r"\centering\scriptsize\setlength{\tabcolsep}{2pt}",
        rf"\caption{{{escape(title(sheet))}}}",
        rf"\begin{{tabular}}{{ll{'r' * len(sheet.headings)}}}",
        r"\toprule",
        " & ".join([escape(sheet.stub), "", *(_stacked(h.title) for h in sheet.headings)]) + r" \\",
    ]
    group = None
    for block in sheet.blocks:
        lines.append(r"\midrule")
        if len(sheet.groups) > 1 and block.group != group:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{{escape(block.group)}}} \\")
            lines.append(r"\midrule")
        group = block.group
        for index, row in enumerate(block.rows):
            cells = [cell_text(row, i, heading) for i, heading in enumerate(sheet.headings)]
            lines.append(_line(["" if index else block.label, row_name(row), *cells]))
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\raggedright"]
    below = [*sheet.below, *(f"{m.title}, {measure_text(m)}." for m in sheet.measures)]
    lines += [rf"{escape(text)}\par" for text in below]
    return "\n".join([*lines, r"\end{table}"])


def escape(text: str) -> str:
    """Any text as LaTeX prints it; what stands between backticks in type of fixed width."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # a backtick without a second one is a character
        return _characters(text)
    return "".join(
        rf"\texttt{{{_characters(piece)}}}" if index % 2 else _characters(piece)
        for index, piece in enumerate(pieces)
    )


def _characters(text: str) -> str:
    return re.sub(".", lambda found: SPECIAL.get(found[0], found[0]), text, flags=re.DOTALL)


def _stacked(title: str) -> str:
    """A heading over several lines, so that it makes its column no wider than the numbers do."""
    lines = [escape(line) for line in textwrap.wrap(title, width=9, break_long_words=False)]
    stacked = r" \\ ".join(lines)
    return rf"\shortstack[r]{{{stacked}}}" if len(lines) > 1 else stacked


def _line(cells: list[str]) -> str:
    return " & ".join(escape(cell) for cell in cells) + r" \\"


def to_csv(sheets: Sequence[Sheet]) -> str:
    """All sheets in one file: a line a number, so that no layout has to be known to read it.

    ================= ==============================================================================
    table             the paper's number of the table; empty for a table of ours
    title             its title
    group             the model and its checkpoint, or the part of the table
    row               "unpruned", N' (tokens), their share (0.334), or the name of an ablation
    method            "unpruned"; "HiPrune", or in a table of ours "uniform", "random" or "cls"; or
                      the method that the paper compares with
    column            as in results/paper/*.csv; or "avg %" and the like, counts, tokens
    ours              our number in the paper's unit; empty where it has not run
    paper             the paper's; empty where it prints none
    difference        ours minus the paper's; empty where one is missing or they do not compare
    settings          alpha, l and what else our runs were made with
    limit             samples a task that our runs were cut to; empty for whole benchmarks
    ours_measured_by  harness, task and metric of our number
    paper_measured_by of the paper's, as far as it is known
    note              what else is to be known of the number; mostly empty
    ================= ==============================================================================

    Numbers are as measured, not rounded. A row's averages are over as many columns as its row with
    the column "columns" says.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for sheet in sheets:
        for block in sheet.blocks:
            writer.writerows(_lines(sheet, block))
    return text.getvalue().rstrip("\n")


def _lines(sheet: Sheet, block: Block) -> list[list[str]]:
    measures = {measure.title: measure for measure in sheet.measures}
    our_method = UNPRUNED if block.label == UNPRUNED else sheet.method
    # Method -> kind of a row -> the row; other methods have the paper's alone.
    sources = {our_method: {row.kind: row for row in block.rows if row.kind != OTHER}}
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
            if method != our_method:
                by[0] = ""
            note = sheet.remark if any(index in row.marked for row in rows.values()) else ""
            where = [sheet.number, sheet.title, block.group, block.label, method, heading.title]
            lines.append([*where, *numbers, sheet.settings, limit, *by, note])
    return lines


def _number(value: float | None) -> str:
    # Ten digits: all that was measured, and none of what adding floats leaves behind.
    return "" if value is None else f"{value:.10g}"


FORMATS: dict[str, Callable[[Sequence[Sheet]], str]] = {
    "markdown": all_to_markdown,
    "csv": to_csv,
    "latex": lambda sheets: "\n\n".join(map(to_latex, sheets)),
}
