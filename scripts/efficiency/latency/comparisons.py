"""A case beside the one that it is measured against, and beside its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scripts.efficiency.latency.rounds import Rounds
from scripts.efficiency.latency.stats import Summary, paired_ratios, summarise


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
