"""The paper's own numbers, from the CSV files under results/paper."""

from __future__ import annotations

import csv
from pathlib import Path

PAPER = Path(__file__).resolve().parents[1] / "results" / "paper"
UNPRUNED = "unpruned"

# Last part of the checkpoint's name -> the paper's table, and what marks the model's rows in it.
TABLES = {
    "llava-v1.5-7b": ("llava_1_5_7b.csv", {}),
    "llava-v1.5-13b": ("llava_13b.csv", {"model": "LLaVA-1.5-13B"}),
    "llava-v1.6-vicuna-7b": ("llava_next_7b.csv", {}),
    "llava-v1.6-vicuna-13b": ("llava_13b.csv", {"model": "LLaVA-NeXT-13B"}),
    "Qwen2.5-VL-3B-Instruct": ("qwen2_5_vl_3b.csv", {"version": "v3"}),
    "Qwen2.5-VL-7B-Instruct": ("qwen2_5_vl_3b_7b.csv", {"model": "Qwen2.5-VL-7B"}),
    "Qwen2.5-VL-32B-Instruct": ("qwen2_5_vl_32b.csv", {}),
}
TABLES["llava-1.5-7b-hf"] = TABLES["llava-v1.5-7b"]
TABLES["llava-1.5-13b-hf"] = TABLES["llava-v1.5-13b"]
TABLES["llava-v1.6-vicuna-7b-hf"] = TABLES["llava-v1.6-vicuna-7b"]
TABLES["llava-v1.6-vicuna-13b-hf"] = TABLES["llava-v1.6-vicuna-13b"]
# Per cent of the tokens that a table of Qwen2.5-VL prints -> the ratio that it was measured with.
RATIOS = {"33.3": 0.334, "22.2": 0.223, "11.1": 0.112}
# The unpruned VizWiz of the paper's LLaVA-1.5-7B table is of the test-dev split, its pruned rows
# are of lmms-eval's val split. Unpruned on val: the baseline that percentages are taken of.
VIZWIZ_VAL = {"llava-v1.5-7b": 54.3, "llava-1.5-7b-hf": 54.3}


def short_name(checkpoint: str) -> str:
    """The last part of a checkpoint's name or path."""
    return Path(checkpoint).name


def paper_rows(checkpoint: str) -> dict[int | float | str, dict[str, float]]:
    """The paper's rows of a checkpoint: "unpruned", N' or the ratio -> column -> score.

    Empty for a checkpoint that the paper has no table of.
    """
    if short_name(checkpoint) not in TABLES:
        return {}
    table, marks = TABLES[short_name(checkpoint)]
    rows: dict[int | float | str, dict[str, float]] = {}
    with open(PAPER / table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            # "v2+v3" is of both versions of the paper.
            if any(mark not in row[column].split("+") for column, mark in marks.items()):
                continue
            if row["method"] == "HiPrune":
                rows[_budget(row)] = _scores(row)
            elif "vanilla" in row["method"]:
                rows[UNPRUNED] = _scores(row)
    return rows


def _budget(row: dict[str, str]) -> int | float:
    if "tokens" in row:
        return int(row["tokens"])
    return RATIOS.get(row["retain_%"], float(row["retain_%"]) / 100)


def _scores(row: dict[str, str]) -> dict[str, float]:
    """The cells that hold a number; empty ones, names and sources do not."""
    scores = {}
    for column, text in row.items():
        try:
            scores[column] = float(text)
        except (TypeError, ValueError):
            continue
    return scores
