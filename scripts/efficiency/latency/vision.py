"""From pixels to projected features: what pruning costs, or saves, in the vision tower alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from scripts.efficiency.latency.clock import clock_of
from scripts.efficiency.latency.memory import PeakMemory
from scripts.efficiency.latency.rounds import Case


@dataclass(frozen=True)
class Variant:
    """One way to encode.

    Attributes:
        ready: a context in which the model is set up for it, giving what to call; setting up and
            taking down are not timed. The call returns the number of visual tokens.
    """

    label: str
    ready: Callable[[], AbstractContextManager[Callable[[], int]]]
    repetitions: int
    facts: dict[str, Any]

    def case(self, device: torch.device) -> Case:
        run, memory = partial(_time, self, device), partial(_memory, self, device)
        return Case(self.label, run, self.repetitions, self.facts, memory)


def _time(variant: Variant, device: torch.device) -> dict[str, float]:
    """Seconds ("time") of one call, and its "tokens"."""
    clock = clock_of(device)
    with torch.no_grad(), variant.ready() as call:
        clock.synchronise()
        start = time.perf_counter()
        tokens = call()
        clock.synchronise()
        return {"time": time.perf_counter() - start, "tokens": tokens}


def _memory(variant: Variant, device: torch.device) -> dict[str, float]:
    memory = PeakMemory(device)
    with torch.no_grad(), variant.ready() as call:
        memory.reset()
        call()
        return memory.read()
