"""Rows of the tables: one a budget, with what it saves and what the paper prints for it."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from scripts.efficiency.architectures import Architecture
from scripts.efficiency.flops.conventions import Figures, figures
from scripts.efficiency.flops.settings import Subject
from scripts.efficiency.flops.work import Counts
from scripts.tables.paper import PAPER, UNPRUNED

# The one model of which the paper prints FLOPs (Table 5), and what its table calls it unpruned.
PAPER_TABLES = {"llava-1.5-7b": ("efficiency_llava_1_5_7b.csv", "LLaVA-7B")}


@dataclass(frozen=True)
class Row:
    """One budget of a model under one convention.

    Attributes:
        retention: "unpruned", tokens, or a share of the image's.
        visual_tokens: N', or N, that the language model gets.
        figures: in the convention's unit.
        reduction: of the unpruned total, in per cent.
        paper: the total that the paper prints, in T FLOPs; None: it prints none.
    """

    retention: int | float | str
    visual_tokens: int
    figures: Figures
    reduction: float
    paper: float | None


def rows_of(
    subject: Subject, counts: Counts, convention: str, text_tokens: int, passes: int
) -> list[Row]:
    """The unpruned model first, then the budgets in their order."""
    tokens = subject.picture.tokens
    totals = paper_totals(subject.architecture) if convention == "paper" else {}
    rows: list[Row] = []
    for retention in (UNPRUNED, *subject.retentions):
        kept = None if retention == UNPRUNED else subject.kept(retention)
        found = figures(counts, convention, tokens, kept, text_tokens, passes)
        base = rows[0].figures.total if rows else found.total
        visual = tokens if kept is None else kept
        reduction = 100 * (1 - found.total / base)
        rows.append(Row(retention, visual, found, reduction, totals.get(visual)))
    return rows


def paper_totals(architecture: Architecture) -> dict[int, float]:
    """Visual tokens -> T FLOPs as the paper prints them; empty where it prints none."""
    if architecture.name not in PAPER_TABLES:
        return {}
    table, unpruned = PAPER_TABLES[architecture.name]
    with open(PAPER / table, newline="", encoding="utf-8") as file:
        return {
            int(row["tokens"]): float(row["FLOPs_T"])
            for row in csv.DictReader(file)
            if row["method"] in ("HiPrune", unpruned)
        }
