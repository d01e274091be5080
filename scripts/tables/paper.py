"""The paper's own numbers, from the CSV files under results/paper."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field, replace
from pathlib import Path

from hiprune.config import DEFAULT_ALPHA, FAMILIES

PAPER = Path(__file__).resolve().parents[2] / "results" / "paper"
EFFICIENCY = "efficiency_llava_1_5_7b.csv"
UNPRUNED = "unpruned"
METHOD, PLUS = "HiPrune", "HiPrune++"
VARIANTS: dict[str, dict] = {METHOD: {}, PLUS: {"method": "hiprune_pp"}}  # HiPruneConfig.variant
PRINTED = "avg_printed_%"  # the average that the paper itself prints, in the tables that have one
# The columns that hold a benchmark's score, in whatever order a table has them.
SCORES = ("GQA", "MMB", "MMB_CN", "MME", "POPE", "SQA_IMG", "VQAv2", "TextVQA", "VizWiz")
# What the rows of the method were measured with is what HiPruneConfig begins with.
ALPHA = DEFAULT_ALPHA
OBJECT_LAYERS = {name: family.object_layer for name, family in FAMILIES.items()}
# Per cent of the tokens that a table of Qwen2.5-VL prints -> the ratio that it was measured with.
RATIOS = {"33.3": 0.334, "22.2": 0.223, "11.1": 0.112, "5.6": 0.056}


def short_name(checkpoint: str) -> str:
    """The last part of a checkpoint's name or path."""
    return Path(checkpoint).name


@dataclass(frozen=True)
class Model:
    """A model of one of the paper's tables.

    Attributes:
        name: the paper's.
        family: as HiPruneConfig.from_env names it.
        checkpoints: the original and, where there is one, transformers' own.
        marks: what its rows in the CSV file are told by; empty where the file is its alone.
        variables: of the bench script beside CKPT, to run all that it can of the table.
        vizwiz_val: unpruned VizWiz on the val split, where the table's is of another split than
            its pruned rows: the baseline that percentages are taken of.
        vizwiz_test: whether the table's unpruned VizWiz is probably of the test split, while its
            pruned rows are of val and what it is on val is not known: the number that LLaVA's own
            docs/MODEL_ZOO.md has of the first checkpoint, whose docs/Evaluation.md takes VizWiz's
            test split.
    """

    name: str
    family: str
    checkpoints: tuple[str, ...]
    marks: dict[str, str] = field(default_factory=dict, hash=False)
    variables: str = ""
    vizwiz_val: float | None = None
    vizwiz_test: bool = False

    def has(self, checkpoint: str) -> bool:
        """Whether a name or a path is of one of the checkpoints: its last part tells."""
        return short_name(checkpoint) in map(short_name, self.checkpoints)


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables: its number there, its CSV file, its models in order."""

    number: str
    file: str
    models: tuple[Model, ...]

    @property
    def columns(self) -> list[str]:
        """The benchmarks, in the paper's order."""
        return [column for column in _read(self.file)[0] if column in SCORES]

    def rows(self, model: Model, method: str = METHOD) -> dict[int | float | str, dict[str, float]]:
        """The unpruned row and those of the method: budget -> column -> number."""
        found = {}
        for row in self._rows_of(model):
            if _is_unpruned(row):
                found[UNPRUNED] = _numbers(row)
            elif row["method"] == method:
                found[_budget(row)] = _numbers(row)
        return found

    def others(
        self, model: Model, method: str = METHOD
    ) -> dict[int | float | str, dict[str, dict[str, float]]]:
        """Every other method that the paper prints: budget -> method -> column -> number."""
        found: dict = {}
        for row in self._rows_of(model):
            if row["method"] != method and not _is_unpruned(row):
                found.setdefault(_budget(row), {})[row["method"]] = _numbers(row)
        return found

    def _rows_of(self, model: Model) -> list[dict[str, str]]:
        # "v2+v3" is of both versions of the paper.
        return [
            row
            for row in _read(self.file)
            if all(mark in row[column].split("+") for column, mark in model.marks.items())
        ]


_ALL_QWEN = (
    'TASKS="gqa mmbench_en_dev mmbench_cn_dev mme pope scienceqa_img textvqa_val vizwiz_vqa_val"'
)
_LLAVA_7B = Model(
    "LLaVA-1.5-7B",
    "llava",
    ("liuhaotian/llava-v1.5-7b", "llava-hf/llava-1.5-7b-hf"),
    vizwiz_val=54.3,
)
_NEXT_7B = Model(
    "LLaVA-NeXT-7B",
    "llava_next",
    ("liuhaotian/llava-v1.6-vicuna-7b", "llava-hf/llava-v1.6-vicuna-7b-hf"),
    vizwiz_test=True,
)
_LLAVA_13B = Model(
    "LLaVA-1.5-13B",
    "llava",
    ("liuhaotian/llava-v1.5-13b", "llava-hf/llava-1.5-13b-hf"),
    {"model": "LLaVA-1.5-13B"},
    vizwiz_test=True,
)
_NEXT_13B = Model(
    "LLaVA-NeXT-13B",
    "llava_next",
    ("liuhaotian/llava-v1.6-vicuna-13b", "llava-hf/llava-v1.6-vicuna-13b-hf"),
    {"model": "LLaVA-NeXT-13B"},
    'TASKS="gqa mme pope scienceqa_img textvqa_val vizwiz_vqa_val"',
)
_QWEN_3B = Model("Qwen2.5-VL-3B", "qwen2_5_vl", ("Qwen/Qwen2.5-VL-3B-Instruct",), {"version": "v3"})
# The paper measured the 3B twice: its rows of Table 8 are not quite those of Table 4.
_QWEN_3B_AGAIN = replace(_QWEN_3B, marks={"model": "Qwen2.5-VL-3B"}, variables=_ALL_QWEN)
_QWEN_7B = Model(
    "Qwen2.5-VL-7B",
    "qwen2_5_vl",
    ("Qwen/Qwen2.5-VL-7B-Instruct",),
    {"model": "Qwen2.5-VL-7B"},
    _ALL_QWEN,
)
_QWEN_32B = Model(
    "Qwen2.5-VL-32B",
    "qwen2_5_vl",
    ("Qwen/Qwen2.5-VL-32B-Instruct",),
    variables='RETENTIONS="unpruned 0.223 0.112 0.056"',
)
TABLES = {
    table.number: table
    for table in (
        PaperTable("2", "llava_1_5_7b.csv", (_LLAVA_7B,)),
        PaperTable("3", "llava_next_7b.csv", (_NEXT_7B,)),
        PaperTable("4", "qwen2_5_vl_3b.csv", (_QWEN_3B,)),
        PaperTable("7", "llava_13b.csv", (_LLAVA_13B, _NEXT_13B)),
        PaperTable("8", "qwen2_5_vl_3b_7b.csv", (_QWEN_3B_AGAIN, _QWEN_7B)),
        PaperTable("10", "qwen2_5_vl_32b.csv", (_QWEN_32B,)),
    )
}


def tables_of(checkpoint: str) -> list[tuple[PaperTable, Model]]:
    """The tables that hold a checkpoint, in the paper's order; none for one it does not have."""
    return [
        (table, model)
        for table in TABLES.values()
        for model in table.models
        if model.has(checkpoint)
    ]


def paper_rows(checkpoint: str) -> dict[int | float | str, dict[str, float]]:
    """The paper's rows of a checkpoint: "unpruned", N' or the ratio -> column -> score.

    Of its first table that has the checkpoint. Empty where no table has it.
    """
    for table, model in tables_of(checkpoint):
        return table.rows(model)
    return {}


def efficiency_rows() -> list[dict[str, str]]:
    """Table 5, of LLaVA-1.5-7B: the unpruned model's row, then those of the method."""
    return [row for row in _read(EFFICIENCY) if row["method"] in ("LLaVA-7B", METHOD)]


def _read(file: str) -> list[dict[str, str]]:
    with open(PAPER / file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _is_unpruned(row: dict[str, str]) -> bool:
    return "vanilla" in row["method"]


def _budget(row: dict[str, str]) -> int | float:
    if "tokens" in row:
        return int(row["tokens"])
    return RATIOS[row["retain_%"]]


def _numbers(row: dict[str, str]) -> dict[str, float]:
    """The cells that hold a number; empty ones, names and sources do not."""
    numbers = {}
    for column, text in row.items():
        try:
            numbers[column] = float(text)
        except (TypeError, ValueError):
            continue
    return numbers
