"""How the results of lmms-eval's tasks become the columns of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

TINY_TASK = "hiprune_tiny"


@dataclass(frozen=True)
class Column:
    """One column: which metrics of which lmms-eval task fill it.

    Attributes:
        task: lmms-eval's name. One task may fill several columns.
        title: the paper's name, as the CSV files under results/paper have it.
        metrics: lmms-eval's, summed (MME counts perception plus cognition).
        scale: lmms-eval's unit -> the paper's.
        averaged: False for a column that says of the same answers what another one says already:
            it is shown, and left out of averages.
    """

    task: str
    title: str
    metrics: tuple[str, ...]
    scale: float = 100.0
    averaged: bool = True

    @property
    def key(self) -> str:
        """What a row of scores calls this column: the task, where it fills one column only."""
        return f"{self.task}/{self.title}" if self.task == TINY_TASK else self.task

    def score(self, values: dict[str, object]) -> float | None:
        """Metric -> value, as lmms-eval writes them -> the number in the paper's unit.

        None where a metric is missing or is no number (MMBench's is none without answers read).
        """
        found = [values.get(metric) for metric in self.metrics]
        if not found or not all(is_number(value) for value in found):
            return None
        return self.scale * sum(found)

    @property
    def formula(self) -> str:
        """The metrics in words: "`pope_f1_score` x 100"."""
        names = " + ".join(f"`{metric}`" for metric in self.metrics)
        return names if self.scale == 1 else f"{names} x {self.scale:g}"


COLUMNS = {
    column.key: column
    for column in (
        Column("gqa", "GQA", ("exact_match",)),
        Column("mme", "MME", ("mme_perception_score", "mme_cognition_score"), scale=1.0),
        Column("pope", "POPE", ("pope_f1_score",)),
        Column("scienceqa_img", "SQA_IMG", ("exact_match",)),
        Column("mmbench_en_dev", "MMB", ("gpt_eval_score",), scale=1.0),
        Column("mmbench_cn_dev", "MMB_CN", ("gpt_eval_score",), scale=1.0),
        Column("textvqa_val", "TextVQA", ("exact_match",)),
        Column("vizwiz_vqa_val", "VizWiz", ("exact_match",)),
        Column(TINY_TASK, "existence", ("existence_accuracy",)),
        # Of the same questions as "existence".
        Column(TINY_TASK, "existence F1", ("existence_f1",), averaged=False),
        Column(TINY_TASK, "colour", ("colour",)),
        Column(TINY_TASK, "shape", ("shape",)),
        Column(TINY_TASK, "count", ("count",)),
        Column(TINY_TASK, "position", ("position",)),
    )
}


def title_of(key: str) -> str:
    """What a table calls a column; of an unknown task, the task's own name."""
    return COLUMNS[key].title if key in COLUMNS else key


def is_averaged(key: str) -> bool:
    """Whether averages count the column."""
    return key not in COLUMNS or COLUMNS[key].averaged


def are_accuracies(keys: Iterable[str]) -> bool:
    """Whether all are shares of one task's answers, in %, so that their mean says something."""
    return all(key in COLUMNS and COLUMNS[key].task == TINY_TASK for key in keys)


def in_order(keys: Iterable[str]) -> list[str]:
    """Known columns as COLUMNS has them, then unknown tasks by name."""
    found = set(keys)
    return [key for key in COLUMNS if key in found] + sorted(found - set(COLUMNS))


def scores(task: str, metrics: dict[str, object]) -> dict[str, float]:
    """One task's results as lmms-eval writes them -> column's key -> score in the paper's unit.

    An unknown task becomes a column of its first metric that is a number, in its own unit.
    """
    # The keys are "metric,filter".
    values = {key.split(",")[0]: value for key, value in metrics.items()}
    columns = [column for column in COLUMNS.values() if column.task == task]
    columns = columns or [Column(task, task, _first_metric(values), scale=1.0)]
    found = {column.key: column.score(values) for column in columns}
    return {key: score for key, score in found.items() if score is not None}


def is_number(value: object) -> bool:
    """Whether it is one; NaN, the score of a task without a sample, is not."""
    counted = isinstance(value, (int, float)) and not isinstance(value, bool)
    return counted and not math.isnan(value)


def _first_metric(values: dict[str, object]) -> tuple[str, ...]:
    numbers = [
        key
        for key, value in values.items()
        if is_number(value) and "stderr" not in key and key != "samples"
    ]
    return tuple(numbers[:1])
