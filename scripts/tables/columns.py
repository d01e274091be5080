"""How the results of lmms-eval's tasks become the columns of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

TINY_TASK, VINOGROUND = "hiprune_tiny", "vinoground"
SEVERAL = (TINY_TASK, VINOGROUND)  # tasks that fill several columns


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
        part: of a metric that is a list of numbers: which one, from 0.
    """

    task: str
    title: str
    metrics: tuple[str, ...]
    scale: float = 100.0
    averaged: bool = True
    part: int | None = None

    @property
    def key(self) -> str:
        """What a row of scores calls this column: the task, where it fills one column only."""
        return f"{self.task}/{self.title}" if self.task in SEVERAL else self.task

    def value(self, metric: str, values: dict[str, object]) -> object:
        """What lmms-eval writes of one of the metrics; None where it is missing."""
        found = values.get(metric)
        if self.part is None:
            return found
        return found[self.part] if isinstance(found, list) and self.part < len(found) else None

    def score(self, values: dict[str, object]) -> float | None:
        """Metric -> value, as lmms-eval writes them -> the number in the paper's unit.

        None where a metric is missing or is no number (MMBench's is none without answers read), and
        for an F1 of no "yes" at all.
        """
        found = [self.value(metric, values) for metric in self.metrics]
        if not found or not all(is_number(value) for value in found):
            return None
        if any(_undefined(metric, values) for metric in self.metrics):
            return None
        return self.scale * sum(found)

    @property
    def formula(self) -> str:
        """The metrics in words: "`pope_f1_score` x 100"."""
        names = " + ".join(f"`{metric}`" for metric in self.metrics)
        if self.part is not None:
            names = f"number {self.part + 1} of {names}"
        return names if self.scale == 1 else f"{names} x {self.scale:g}"


VINOGROUND_SCORE = "vinoground_score"

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
        # In %. A pair counts for the group where it counts for both: of the same answers.
        Column(VINOGROUND, "Vinoground text", (VINOGROUND_SCORE,), scale=1.0, part=0),
        Column(VINOGROUND, "Vinoground video", (VINOGROUND_SCORE,), scale=1.0, part=1),
        Column(VINOGROUND, "Vinoground group", (VINOGROUND_SCORE,), 1.0, averaged=False, part=2),
    )
}


# The key of a column of a task that is not above: TASK/METRIC where the metric is the task's only
# number; TASK//METRIC where it is one of several, of which nothing says that it is the score, or
# where less is better.
ONLY, ONE_OF_SEVERAL = "/", "//"


def title_of(key: str) -> str:
    """What a table calls a column; of an unknown task, the task and its metric."""
    if key in COLUMNS:
        return COLUMNS[key].title
    return ": ".join(parts_of(key)) if ONLY in key else key  # a title is its own


def parts_of(key: str) -> tuple[str, str]:
    """Task and metric of an unknown task's column."""
    task, _, metric = key.partition(ONLY)
    return task, metric.lstrip(ONLY)


def digits_of(title: str) -> int:
    """After the point: one, of a score in the paper's unit; four, of a metric in its own."""
    return 4 if ": " in title else 1


def is_averaged(key: str) -> bool:
    """Whether averages count the column."""
    return COLUMNS[key].averaged if key in COLUMNS else ONE_OF_SEVERAL not in key


def are_accuracies(keys: Iterable[str]) -> bool:
    """Whether all are shares of one task's answers, in %, so that their mean says something."""
    return all(key in COLUMNS and COLUMNS[key].task == TINY_TASK for key in keys)


def in_order(keys: Iterable[str]) -> list[str]:
    """Known columns as COLUMNS has them, then unknown tasks by name."""
    found = set(keys)
    return [key for key in COLUMNS if key in found] + sorted(found - set(COLUMNS))


def scores(
    task: str, metrics: dict[str, object], higher_is_better: dict[str, object] | None = None
) -> dict[str, float]:
    """One task's results as lmms-eval writes them -> column's key -> score in the paper's unit.

    An unknown task becomes a column for each of its metrics that is a number, in its own unit.
    """
    columns = [column for column in COLUMNS.values() if column.task == task]
    # The keys are "metric,filter".
    values = {key.partition(",")[0]: value for key, value in metrics.items()}
    if columns:
        found = {column.key: column.score(values) for column in columns}
        return {key: score for key, score in found.items() if score is not None}
    numbers = {
        key: value
        for key, value in metrics.items()
        if is_number(value) and "stderr" not in key and key != "samples"
    }
    better = higher_is_better or {}
    several = len(numbers) > 1 or any(better.get(_name(key)) is False for key in numbers)
    between = ONE_OF_SEVERAL if several else ONLY
    return {
        f"{task}{between}{_name(key)}": float(value)
        for key, value in numbers.items()
        if not _undefined(key, values)
    }


def has_metrics(task: str, metrics: dict[str, object]) -> bool:
    """Whether the results hold a number for one of the task's columns, be it a shown one or not."""
    values = {key.partition(",")[0]: value for key, value in metrics.items()}
    columns = [column for column in COLUMNS.values() if column.task == task]
    found = [column.value(metric, values) for column in columns for metric in column.metrics]
    return any(map(is_number, found if columns else values.values()))


def _name(key: str) -> str:
    """lmms-eval's "metric,filter": the metric, and the filter where that is one."""
    metric, _, filtered = key.partition(",")
    return metric if filtered in ("", "none") else f"{metric} ({filtered})"


def _undefined(metric: str, values: dict[str, object]) -> bool:
    """Is it an F1 of no "yes" at all, asked for or said? lmms-eval writes 0 for it.

    Then every answer is a right "no", and the accuracy 1; where one is not, F1 = 0 is earned.
    """
    name = metric.partition(",")[0]
    beside = (value for other, value in values.items() if other.endswith("accuracy"))
    return "f1" in name and values.get(name) == 0 and 1 in beside


def is_number(value: object) -> bool:
    """Whether it is one; NaN, the score of a task without a sample, is not."""
    counted = isinstance(value, (int, float)) and not isinstance(value, bool)
    return counted and not math.isnan(value)
