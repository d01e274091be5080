"""What results/ says that inference costs: counted, measured here, and printed by the paper."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT, shown

RESULTS = ROOT / "results" / "efficiency"
PAPER = ROOT / "results" / "paper" / "efficiency_llava_1_5_7b.csv"
PAPER_WHERE = "paper's Table 5: A100-PCIE 40 GB, bf16, FlashAttention-2, mean of 10 runs"


@dataclass(frozen=True)
class Measured:
    """What one run of bench_sys.py measured, of all parts.

    Attributes:
        where: model, weights, precision and machine, in words.
        file: that it was read from.
        rows: "unpruned" or N' -> what was measured -> median, q1 and q3 (seconds), n.
        ratios: (N', what was measured) -> the same of the ratio to the unpruned run beside it.
    """

    where: str
    file: str
    model: str
    rows: dict[int | str, dict[str, dict[str, float]]]
    ratios: dict[tuple[int, str], dict[str, float]]


def read_measured(folder: Path = RESULTS) -> list[Measured]:
    """Every run under a folder that measured the way to the first token."""
    found = []
    for file in sorted(folder.rglob("result.json")):
        run = json.loads(file.read_text())
        if not any("ttft" in row["summary"] for row in run["rows"]):  # of the vision side alone
            continue
        rows = {row["retention"] or "unpruned": row["summary"] for row in run["rows"]}
        budgets = {row["label"]: row["retention"] for row in run["rows"]}
        ratios = {
            (budgets[ratio["case"]], ratio["metric"]): ratio["summary"]
            for ratio in run["ratios"]
            if ratio["base"] == "unpruned"
        }
        found.append(Measured(run["title"], shown(file), run["settings"]["model"], rows, ratios))
    return found


def read_counted(model: str, convention: str) -> dict[int | str, float]:
    """ "unpruned" or N' -> what flops.py counted, in units of 10^12."""
    listed = json.loads((RESULTS / "flops.json").read_text())["models"][model]
    rows = listed["conventions"][convention]["rows"]
    return {row["retention"]: row["total"] / 1e12 for row in rows}


def read_printed(column: str) -> dict[int | str, float]:
    """ "unpruned" or N' -> what the paper prints for LLaVA-1.5-7B in a column of Table 5."""
    with open(PAPER, newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["method"] in ("LLaVA-7B", "HiPrune")]
    return {
        "unpruned" if row["method"] == "LLaVA-7B" else int(row["tokens"]): float(row[column])
        for row in rows
    }
