"""Rounds: every case once, then every case again, so that a drifting machine favours none."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from scripts.efficiency.latency.clock import free_memory

MEMORY_ROUNDS = 3  # at most: memory varies little


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        label: its row.
        run: one timed run -> metrics, name -> value.
        repetitions: timed runs.
        facts: what the report says of it besides (budgets, shapes).
        memory: one run for its memory -> metrics. Apart from the timed ones: what it takes to see
            a peak (freed memory handed back first) makes a run slower.
    """

    label: str
    run: Callable[[], dict[str, float]]
    repetitions: int
    facts: dict[str, Any] = field(default_factory=dict)
    memory: Callable[[], dict[str, float]] | None = None


@dataclass
class Row:
    """What came of a case. A sample is the metrics of one run, with its "repetition" from 0."""

    label: str
    facts: dict[str, Any]
    samples: list[dict[str, float]] = field(default_factory=list)
    memory: list[dict[str, float]] = field(default_factory=list)
    error: str | None = None

    def of(self, metric: str) -> list[dict[str, float]]:
        """The samples that have a metric, whichever kind of run it is of."""
        return [sample for sample in (*self.samples, *self.memory) if metric in sample]


@dataclass
class Rounds:
    """All rows, in the order of the cases; ``interrupted`` by Ctrl-C."""

    rows: list[Row]
    interrupted: bool = False

    def row(self, label: str) -> Row:
        return next(row for row in self.rows if row.label == label)


def run_rounds(
    cases: Sequence[Case], warmup: int, device: torch.device, progress: Callable[[str], None]
) -> Rounds:
    """Warm-up rounds, which are dropped; rounds for memory; timed rounds.

    Each round begins with another case, so that none always follows the same one. A case that runs
    out of memory stops there, with its error in its row; the others go on.
    """
    rounds = Rounds([Row(case.label, case.facts) for case in cases])
    pairs = list(zip(cases, rounds.rows, strict=True))
    most = max(case.repetitions for case in cases)
    plan: list[tuple[str, int]] = [("warm-up", number) for number in range(warmup)]
    plan += [("memory", number) for number in range(min(MEMORY_ROUNDS, most))]
    plan += [("timed", number) for number in range(most)]
    try:
        for kind, number in plan:
            first = number % len(pairs)
            for case, row in (*pairs[first:], *pairs[:first]):
                run = case.memory if kind == "memory" else case.run
                if (
                    run is None
                    or row.error is not None
                    or (kind != "warm-up" and number >= case.repetitions)
                ):
                    continue
                progress(f"{kind} run {number + 1}: {case.label}")
                sample = _attempt(run)
                if sample is None:
                    row.error = "out of memory"
                    free_memory(device)
                    progress(f"{case.label}: out of memory, left out from here on")
                elif kind != "warm-up":
                    kept = row.memory if kind == "memory" else row.samples
                    kept.append({"repetition": number, **sample})
    except KeyboardInterrupt:
        rounds.interrupted = True
    return rounds


def _attempt(run: Callable[[], dict[str, float]]) -> dict[str, float] | None:
    """The run's metrics; None if it ran out of memory."""
    try:
        return run()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a run failed for want of memory, on a GPU or (torch says it in words) on a CPU."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@dataclass(frozen=True)
class Summary:
    """Of n samples, in their unit; q1 and q3 are the quartiles (inclusive method)."""

    median: float
    q1: float
    q3: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def summarise(samples: Iterable[float]) -> Summary | None:
    """None without a sample; of one sample all quartiles are that sample."""
    values = list(samples)
    if not values:
        return None
    if len(values) == 1:
        return Summary(values[0], values[0], values[0], 1)
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, q1, q3, len(values))


def values_of(samples: Iterable[Mapping[str, float]], metric: str) -> list[float]:
    return [sample[metric] for sample in samples if metric in sample]


def paired_ratios(
    samples: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]], metric: str
) -> list[float]:
    """metric / the base's, repetition by repetition: what drifts over a session cancels.

    Samples carry "repetition"; those that only one side has are left out.
    """
    others = {sample["repetition"]: sample for sample in base}
    ratios = []
    for sample in samples:
        other = others.get(sample["repetition"], {})
        if metric in sample and other.get(metric):
            ratios.append(sample[metric] / other[metric])
    return ratios


@dataclass(frozen=True)
class Comparison:
    """metric of ``case`` / metric of ``base``; met where the median ratio is at most ``target``."""

    case: str
    base: str
    metric: str
    target: float | None = None

    def ratios(self, rounds: Rounds) -> list[float]:
        """One a repetition that both have."""
        case, base = rounds.row(self.case), rounds.row(self.base)
        return paired_ratios(case.of(self.metric), base.of(self.metric), self.metric)

    def summary(self, rounds: Rounds) -> Summary | None:
        return summarise(self.ratios(rounds))

    def verdict(self, rounds: Rounds) -> str | None:
        """None without a target or without a measurement."""
        found = self.summary(rounds)
        if found is None or self.target is None:
            return None
        return "met" if found.median <= self.target else "missed"

    def as_dict(self, rounds: Rounds) -> dict[str, Any]:
        found = self.summary(rounds)
        return {
            "case": self.case,
            "base": self.base,
            "metric": self.metric,
            "target": self.target,
            "ratios": self.ratios(rounds),
            "summary": found.as_dict() if found else None,
            "verdict": self.verdict(rounds),
        }
