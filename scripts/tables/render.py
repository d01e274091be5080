"""A sheet as Markdown: what a reader sees on a terminal and in the repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scripts.tables.sheet import Measure, Sheet, cell_text, row_name


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
    lines = [[sheet.stub, "", *(heading.title for heading in sheet.headings)]]
    lines.append(["---"] * len(lines[0]))
    group = None
    for block in sheet.blocks:
        # A table of one model has its name in the title or the notes.
        if len(sheet.groups) > 1 and block.group != group:
            lines.append([f"**{block.group}**", *[""] * (len(lines[0]) - 1)])
        group = block.group
        for index, row in enumerate(block.rows):
            cells = [cell_text(row, i, heading) for i, heading in enumerate(sheet.headings)]
            lines.append(["" if index else block.label, row_name(row), *cells])
    parts = [f"### {title(sheet)}", "", *align(lines), "", *sheet.below]
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


def align(lines: Sequence[Sequence[str]]) -> list[str]:
    """Cells -> lines of Markdown with equal widths; a line of dashes parts the header."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        if line[0] != "---"
        else "|" + "|".join("-" * (w + 2) for w in widths) + "|"
        for line in lines
    ]
