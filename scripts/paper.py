"""The paper's own numbers, from the CSV files under results/paper."""

from __future__ import annotations

import csv
from pathlib import Path

PAPER = Path(__file__).resolve().parents[1] / "results" / "paper"
UNPRUNED = "unpruned"

# Last part of the checkpoint's name -> the paper's table, and the model's name in it if it holds
# several.
TABLES = {
    "llava-v1.5-7b": ("llava_1_5_7b.csv", None),
    "llava-v1.5-13b": ("llava_13b.csv", "LLaVA-1.5-13B"),
    "llava-v1.6-vicuna-7b": ("llava_next_7b.csv", None),
    "llava-v1.6-vicuna-13b": ("llava_13b.csv", "LLaVA-NeXT-13B"),
}
# The unpruned VizWiz of the paper's LLaVA-1.5-7B table is of the test-dev split, its pruned rows
# are of lmms-eval's val split. Unpruned on val: the baseline that percentages are taken of.
VIZWIZ_VAL = {"llava-v1.5-7b": 54.3}


def short_name(checkpoint: str) -> str:
    """The last part of a checkpoint's name or path."""
    return Path(checkpoint).name


def paper_rows(checkpoint: str) -> dict[int | str, dict[str, float]]:
    """The paper's rows of a checkpoint: "unpruned" or N' -> column -> score.

    Empty for a checkpoint that the paper has no table of.
    """
    if short_name(checkpoint) not in TABLES:
        return {}
    table, model = TABLES[short_name(checkpoint)]
    rows: dict[int | str, dict[str, float]] = {}
    with open(PAPER / table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if model is not None and row["model"] != model:
                continue
            if row["method"] == "HiPrune":
                rows[int(row["tokens"])] = _scores(row)
            elif "vanilla" in row["method"]:
                rows[UNPRUNED] = _scores(row)
    return rows


def _scores(row: dict[str, str]) -> dict[str, float]:
    """The cells that hold a number; empty ones, names and sources do not."""
    scores = {}
    for column, text in row.items():
        try:
            scores[column] = float(text)
        except (TypeError, ValueError):
            continue
    return scores
