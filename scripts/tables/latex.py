"""A sheet as a LaTeX table. It needs the package booktabs, and nothing else."""

from __future__ import annotations

import re
import textwrap

from scripts.tables.render import measure_text, title
from scripts.tables.sheet import MARK, MISSING, Sheet, cell_text, row_name

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
