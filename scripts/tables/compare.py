"""Our rows, the paper's and their difference; averages over the same columns, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from scripts.tables.columns import digits_of
from scripts.tables.paper import PRINTED, UNPRUNED
from scripts.tables.sheet import DIFFERENCE, OTHER, OURS, PAPER, Block, Heading, Row

VIZWIZ = "VizWiz"
AVERAGE, PRINTED_TITLE = "avg %", "printed avg %"
Scores = dict[str, float]  # title of a column -> score in the paper's unit


@dataclass(frozen=True)
class Shape:
    """The columns that all blocks of a table have.

    Attributes:
        titles: of the benchmarks' columns.
        averaged: those of them that averages count.
        mean: whether a column holds the mean of the averaged scores themselves.
        vizwiz: the paper's other unpruned VizWiz: a second average is then taken of it.
        printed: whether the paper prints an average.
        tokens: whether a column holds the visual tokens that reached the language model.
    """

    titles: tuple[str, ...]
    averaged: frozenset[str]
    mean: bool = False
    vizwiz: float | None = None
    printed: bool = False
    tokens: bool = True

    @property
    def headings(self) -> tuple[Heading, ...]:
        found = [Heading(title, digits_of(title)) for title in self.titles]
        found += [Heading("mean")] if self.mean else []
        found += [Heading(AVERAGE)]
        if self.vizwiz is not None:
            found += [Heading(f"{AVERAGE}, VizWiz of {self.vizwiz:.1f}")]
        found += [Heading("columns", digits=0)]
        found += [Heading(PRINTED_TITLE)] if self.printed else []
        found += [Heading("tokens in the LLM")] if self.tokens else []
        return tuple(found)


@dataclass(frozen=True)
class Comparison:
    """What a model's blocks are made of beside their own rows.

    Attributes:
        group: the model.
        base: our unpruned row; empty where it has not run.
        paper_base: the paper's.
        vizwiz_val: the paper's unpruned VizWiz on the val split, where ``paper_base`` has that of
            test-dev.
        vizwiz_test: whether ``paper_base`` has VizWiz of test and what it is on val is not known.
        unlike: columns that we measure otherwise than the paper.
        limit: samples a task that our runs were cut to: no difference is taken then.
    """

    shape: Shape
    group: str
    base: Scores
    paper_base: Scores = field(default_factory=dict)
    vizwiz_val: float | None = None
    vizwiz_test: bool = False
    unlike: frozenset[str] = frozenset()
    limit: float | None = None

    def block(
        self,
        budget: int | float | str,
        ours: Scores | None,
        paper: Scores | None,
        others: dict[str, Scores] | None = None,
        tokens: float | None = None,
    ) -> Block:
        """The rows of one budget.

        Args:
            ours: None for no row of ours; an empty one has its cells marked as missing.
            paper: None where the paper has no row: then there is no difference either.
            others: method -> the paper's scores of it.
            tokens: of ours, visual tokens per image in the language model.
        """
        base, val_base, printed_base = self._bases(budget, ours or {}, paper or {})
        our_titles = self._countable(ours or {}, base)
        paper_titles = self._countable(paper or {}, val_base)
        shared = [
            title for title in our_titles if title in paper_titles and title not in self.unlike
        ]
        if shared:
            our_titles = paper_titles = shared
        # The second average takes VizWiz, ours too, of what the paper's own average takes it of.
        second = base if budget == UNPRUNED else {**base, VIZWIZ: self.shape.vizwiz}
        rows = []
        for method, scores in (others or {}).items():
            usable = [t for t in self._countable(scores, val_base) if not shared or t in shared]
            cells = self._cells(scores, usable, val_base, printed_base)
            rows.append(
                Row(OTHER, method, tuple(cells), self._marked(budget, scores, usable, cells))
            )
        name = OURS
        if self.limit is not None and paper is not None:
            name = f"{OURS}, LIMIT {self.limit:g}"
        if ours is not None:
            rows.append(Row(OURS, name, tuple(self._cells(ours, our_titles, base, second, tokens))))
        if paper is not None:
            cells = self._cells(paper, paper_titles, val_base, printed_base)
            marked = self._marked(budget, paper, paper_titles, cells)
            rows.append(Row(PAPER, PAPER, tuple(cells), marked))
        if ours is not None and paper is not None and self.limit is None:
            cells = self._difference(budget, rows[-2].cells, rows[-1].cells, bool(shared))
            marked = frozenset(i for i in rows[-1].marked if cells[i] is not None)
            rows.append(Row(DIFFERENCE, DIFFERENCE, tuple(cells), marked))
        return Block(self.group, str(budget), tuple(rows))

    def _bases(
        self, budget: int | float | str, ours: Scores, paper: Scores
    ) -> tuple[Scores, Scores, Scores]:
        """What 100 % is of our row, of the paper's, and of the paper's second average."""
        if budget == UNPRUNED:  # of itself, also where its VizWiz is of another split
            return ours, paper, paper
        val_base = self.paper_base
        if self.vizwiz_val is not None:
            val_base = {**val_base, VIZWIZ: self.vizwiz_val}
        return self.base, val_base, self.paper_base

    def _countable(self, row: Scores, base: Scores) -> list[str]:
        """The columns that a row's average can be taken over."""
        averaged = [title for title in self.shape.titles if title in self.shape.averaged]
        return [title for title in averaged if title in row and base.get(title)]

    def _cells(
        self,
        row: Scores,
        counted: list[str],
        base: Scores,
        second: Scores,
        tokens: float | None = None,
    ) -> list[float | None]:
        shape = self.shape
        cells = [row.get(title) for title in shape.titles]
        if shape.mean:
            wanted = [row.get(title) for title in shape.titles if title in shape.averaged]
            cells.append(None if None in wanted else sum(wanted) / len(wanted))
        cells.append(average(row, base, counted))
        if shape.vizwiz is not None:
            cells.append(average(row, second, counted))
        cells.append(len(counted) or None)
        cells += [row.get(PRINTED)] if shape.printed else []
        return [*cells, tokens] if shape.tokens else cells

    def _marked(
        self,
        budget: int | float | str,
        row: Scores,
        counted: list[str],
        cells: Sequence[float | None],
    ) -> frozenset[int]:
        """Of a row of the paper's, by index: an unpruned VizWiz of test, averages that take it."""
        if not self.vizwiz_test or VIZWIZ not in row:
            return frozenset()
        if budget == UNPRUNED:  # its averages are 100, whatever the split
            titles = {VIZWIZ}
        else:
            titles = {PRINTED_TITLE, *([AVERAGE] if VIZWIZ in counted else [])}
        return frozenset(
            index
            for index, heading in enumerate(self.shape.headings)
            if heading.title in titles and cells[index] is not None
        )

    def _difference(
        self,
        budget: int | float | str,
        ours: tuple[float | None, ...],
        paper: tuple[float | None, ...],
        shared: bool,
    ) -> list[float | None]:
        cells: list[float | None] = []
        for heading, our_cell, paper_cell in zip(self.shape.headings, ours, paper, strict=True):
            unlike = heading.title in self.unlike
            if heading.title == VIZWIZ and budget == UNPRUNED:
                unlike = unlike or self.vizwiz_test or self.vizwiz_val is not None  # of two splits
            if heading.title.startswith(AVERAGE):
                unlike = not shared
            if heading.title == "columns":
                cells.append(our_cell if shared else None)
            else:
                cells.append(
                    None if unlike or None in (our_cell, paper_cell) else our_cell - paper_cell
                )
        return cells


def average(row: Scores, base: Scores, titles: Sequence[str]) -> float | None:
    """Mean of 100 * score / the base's; None over no column at all."""
    if not titles:
        return None
    return sum(100 * row[title] / base[title] for title in titles) / len(titles)
