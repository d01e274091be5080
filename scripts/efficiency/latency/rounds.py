"""Rounds: every case once, then every case again, so that a drifting machine favours none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from scripts.efficiency.latency.errors import is_out_of_memory
from scripts.efficiency.latency.memory import free_memory

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
