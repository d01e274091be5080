"""A table before it is written in any format: headings, and blocks of rows of numbers."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.tables.paper import METHOD

MISSING = "–"
MARK = "†"  # after a number that the sheet's remark is about
OURS, PAPER, DIFFERENCE, OTHER = "ours", "paper", "difference", "other"


@dataclass(frozen=True)
class Heading:
    """A column: its title and how many digits follow the point; 0 for what is counted."""

    title: str
    digits: int = 1


@dataclass(frozen=True)
class Row:
    """Numbers from one source.

    Attributes:
        kind: OURS, PAPER, DIFFERENCE (ours minus the paper's) or OTHER (a method that the paper
            compares with, in the paper's numbers).
        name: what a reader is told of the source; of OTHER, the method alone.
        cells: one for each heading; None where nothing was run or printed.
        marked: which of the cells the sheet's remark is about, by index.
    """

    kind: str
    name: str
    cells: tuple[float | None, ...]
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Block:
    """Rows that belong together: of one budget, or one setting.

    Attributes:
        group: the model or the part of the table that the block is of.
    """

    group: str
    label: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Measure:
    """How a column was measured. Text between backticks is a name, to be set as code."""

    title: str
    ours: str
    paper: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        number: of the paper's table in whose layout this is; "" for none.
        stub: what the blocks' labels are.
        settings: alpha, l and what else our runs were made with.
        limit: samples a task that our runs were cut to; None for whole benchmarks.
        notes: sentences below the table.
        method: what our pruned rows are of, as HIPRUNE_METHOD names it; the paper's by its name.
        remark: on the cells that are marked; "" where none is.
    """

    number: str
    title: str
    stub: str
    headings: tuple[Heading, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()
    settings: str = ""
    limit: float | None = None
    method: str = METHOD
    remark: str = ""

    @property
    def below(self) -> list[str]:
        """The notes, and the remark on what is marked."""
        return [*self.notes, *([f"{MARK}: {self.remark}"] if self.remark else [])]

    @property
    def groups(self) -> list[str]:
        """In order, each once."""
        return list(dict.fromkeys(block.group for block in self.blocks))


def cell_text(row: Row, column: int, heading: Heading, missing: str = MISSING) -> str:
    """A cell as a reader sees it: "59.2", "+0.3", "5"; ``missing`` where there is no number."""
    value = row.cells[column]
    if value is not None and row.kind == DIFFERENCE and heading.digits:
        # Adding 0.0 after rounding turns -0.0 into 0.0: "no difference" has no direction.
        text = f"{round(value, heading.digits) + 0.0:+.{heading.digits}f}"
    else:
        text = number_text(value, heading.digits, missing)
    return text + MARK * (column in row.marked)


def number_text(value: float | None, digits: int = 1, missing: str = MISSING) -> str:
    """A number as a reader sees it."""
    return missing if value is None else f"{value:.{digits}f}"


def row_name(row: Row) -> str:
    """Who a row is of: other methods' rows are the paper's numbers, and say so."""
    return f"{row.name} (paper)" if row.kind == OTHER else row.name
