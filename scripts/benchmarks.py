"""What is evaluated: the families' checkpoints, tasks and budgets, and the paper's columns."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Benchmark:
    """One bench_*.sh: the defaults of its variables."""

    family: str  # as HiPruneConfig.from_env names it
    model: str  # lmms-eval's name of our model
    checkpoint: str
    tasks: tuple[str, ...]
    retentions: tuple[int | float, ...]
    tiny_checkpoint: str
    retention_variable: str = "HIPRUNE_RETENTION"


BENCHMARKS = {
    "llava": Benchmark(
        family="llava",
        model="llava_hiprune",
        checkpoint="liuhaotian/llava-v1.5-7b",
        tasks=("gqa", "mme", "pope", "scienceqa_img", "vizwiz_vqa_val"),
        retentions=(192, 128, 64),
        tiny_checkpoint="llava-v1.5-tiny",
    ),
    "llava_next": Benchmark(
        family="llava_next",
        model="llava_hiprune",
        checkpoint="liuhaotian/llava-v1.6-vicuna-7b",
        tasks=("pope", "scienceqa_img", "vizwiz_vqa_val"),
        retentions=(640, 320, 160),
        tiny_checkpoint="llava-v1.6-tiny",
    ),
}


@dataclass(frozen=True)
class Column:
    """How one lmms-eval task becomes a column of the paper's tables.

    Attributes:
        title: the paper's name, as the CSV files under results/paper have it.
        metrics: lmms-eval's, summed (MME counts perception plus cognition).
        scale: lmms-eval's unit -> the paper's.
    """

    title: str
    metrics: tuple[str, ...]
    scale: float = 100.0


COLUMNS = {
    "gqa": Column("GQA", ("exact_match",)),
    "mme": Column("MME", ("mme_perception_score", "mme_cognition_score"), scale=1.0),
    "pope": Column("POPE", ("pope_f1_score",)),
    "scienceqa_img": Column("SQA_IMG", ("exact_match",)),
    "vizwiz_vqa_val": Column("VizWiz", ("exact_match",)),
    "hiprune_tiny": Column("tiny (accuracy)", ("pope_accuracy",)),
}

# Last part of the checkpoint's name -> the paper's table, and the model's name in it if it holds
# several.
PAPER_TABLES = {
    "llava-v1.5-7b": ("llava_1_5_7b.csv", None),
    "llava-v1.5-13b": ("llava_13b.csv", "LLaVA-1.5-13B"),
    "llava-v1.6-vicuna-7b": ("llava_next_7b.csv", None),
    "llava-v1.6-vicuna-13b": ("llava_13b.csv", "LLaVA-NeXT-13B"),
}
# The unpruned VizWiz of the paper's LLaVA-1.5 table is of the test-dev split, its pruned rows are
# of lmms-eval's val split. Unpruned on val: the baseline that the percentages here are taken of.
PAPER_VIZWIZ_VAL = {"llava-v1.5-7b": 54.3}


def paper_rows(checkpoint: str) -> dict[int | str, dict[str, float]]:
    """The paper's own rows of a checkpoint: "unpruned" or N' -> column title -> score.

    Empty for a checkpoint that the paper has no table of.
    """
    name = checkpoint.rstrip("/").rsplit("/", 1)[-1]
    if name not in PAPER_TABLES:
        return {}
    table, model = PAPER_TABLES[name]
    rows: dict[int | str, dict[str, float]] = {}
    with open(ROOT / "results" / "paper" / table, newline="") as file:
        for row in csv.DictReader(file):
            if model is not None and row["model"] != model:
                continue
            if row["method"] == "HiPrune":
                rows[int(row["tokens"])] = _scores(row)
            elif "vanilla" in row["method"]:
                rows[UNPRUNED] = _scores(row)
    return rows


def _scores(row: dict[str, str]) -> dict[str, float]:
    titles = {column.title for column in COLUMNS.values()}
    return {title: float(row[title]) for title in titles if row.get(title)}
