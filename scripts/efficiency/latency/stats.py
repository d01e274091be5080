"""Median and quartiles of repeated measurements, and ratios of paired ones."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass


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
