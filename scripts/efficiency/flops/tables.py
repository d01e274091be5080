"""Rows of a table, one a budget; Markdown for a reader, and all in full for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts.efficiency.architectures import Architecture
from scripts.efficiency.flops.cli import Settings, Subject
from scripts.efficiency.flops.conventions import CONVENTIONS, Figures, figures
from scripts.efficiency.flops.count import Counts
from scripts.tables.paper import EFFICIENCY, PAPER, UNPRUNED, efficiency_rows
from scripts.tables.render import markdown
from scripts.tables.sheet import MISSING

PRINTED = "llava-1.5-7b"  # the one model of which the paper prints FLOPs (Table 5)
TERA = 1e12


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
    if architecture.name != PRINTED:
        return {}
    return {int(row["tokens"]): float(row["FLOPs_T"]) for row in efficiency_rows()}


def introduction(settings: Settings, versions: dict[str, str]) -> str:
    """What holds for all tables; the conventions that they use, in words."""
    lines = [
        "# A prompt with one image, up to the first answer token",
        "",
        f"T = 1e12. {settings.text_tokens} text tokens beside the image. Counted with fvcore on "
        "models without weights, one layer of each kind, and multiplied; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ". All figures are of this program, but for a column that is called the paper's.",
        "",
    ]
    for name in settings.conventions:
        convention = CONVENTIONS[name]
        lines.append(f"- **{name}** (T {convention.unit}): {convention.meaning}")
    return "\n".join(lines)


def table(subject: Subject, convention: str, rows: Sequence[Row]) -> str:
    """One model under one convention, as a Markdown section."""
    architecture = subject.architecture
    projector = "merger" if architecture.is_qwen else "projector"
    header = ["retention", "visual tokens", "vision tower", "scoring", projector, "LLM", "total"]
    header.append("reduction %")
    printed = any(row.paper is not None for row in rows)
    if printed:
        header.append("paper (Table 5)")
    lines = []
    for row in rows:
        found = row.figures
        parts = (found.vision, found.scoring, found.projector, found.llm, found.total)
        cells = [str(row.retention), str(row.visual_tokens), *map(_tera, parts)]
        lines.append([*cells, f"{row.reduction:.1f}"])
        if printed:
            lines[-1].append(MISSING if row.paper is None else f"{row.paper:.2f}")
    unit = CONVENTIONS[convention].unit
    title = f"## {architecture.name}, convention {convention}: T {unit}"
    notes = _notes(subject, convention, printed)
    return "\n".join(
        [title, "", markdown(header, lines, right=True), *([""] if notes else []), *notes]
    )


def record(subject: Subject, tables: dict[str, list[Row]]) -> dict[str, Any]:
    """Everything that the tables of one model hold, unrounded and not in T."""
    picture = subject.picture
    return {
        "checkpoint": subject.architecture.checkpoint,
        "image": {**asdict(picture), "tokens": picture.tokens},
        "conventions": {
            name: {
                "unit": CONVENTIONS[name].unit,
                "rows": [
                    {
                        "retention": row.retention,
                        "visual_tokens": row.visual_tokens,
                        **asdict(row.figures),
                        "total": row.figures.total,
                        "reduction_percent": row.reduction,
                        "paper_total_T": row.paper,
                    }
                    for row in rows
                ],
            }
            for name, rows in tables.items()
        },
    }


def _notes(subject: Subject, convention: str, printed: bool) -> list[str]:
    picture, architecture = subject.picture, subject.architecture
    notes = []
    if convention == "paper" and printed:
        notes.append(
            "The column total is the one that the paper prints, here with 49 text tokens: "
            f"results/{PAPER.name}/{EFFICIENCY}."
        )
    elif convention == "paper":
        notes.append("The paper prints no FLOPs of this model: the same rules, applied to it.")
    if architecture.is_qwen:
        side = architecture.vision.patch
        notes.append(
            f"An image of {picture.columns * side} x {picture.rows * side} pixels: "
            f"{picture.columns} x {picture.rows} patches, {picture.tokens} merged tokens."
        )
    elif picture.views > 1:
        shared = f"each keeps int(N' / {picture.views}) tokens"
        newlines = "without the newline tokens that an unpatched model puts between rows"
        notes.append(
            {
                "llava_next": f"{picture.views} views, of which {shared}; {picture.tokens} visual "
                f"tokens as in the paper's tables, {newlines}.",
                "llava_onevision": f"An image of 896 x 896 pixels: {picture.views} views, of which "
                f"{shared}; {newlines}.",
                "internvl": f"An image of 896 x 896 pixels: {picture.views} tiles, of which "
                f"{shared} (4 patches each).",
            }[architecture.family]
        )
    return notes


def _tera(value: int | None) -> str:
    return MISSING if value is None else f"{value / TERA:.3f}"
