"""The whole model, unpruned and at each budget: parts of the prefill, decoding, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import hiprune
from hiprune import HiPruneConfig
from scripts.efficiency.latency.clock import OTHER, Stopwatch, clock_of
from scripts.efficiency.latency.generation import generate, timed_generation
from scripts.efficiency.latency.inputs import Inputs
from scripts.efficiency.latency.memory import PeakMemory
from scripts.efficiency.latency.rounds import Case, Rounds, run_rounds
from scripts.efficiency.latency.spans import PARTS, instrumented
from scripts.efficiency.latency.subject import Subject

UNPRUNED = "unpruned"


def measure_parts(
    subject: Subject,
    inputs: Inputs,
    retentions: Sequence[int | float],
    *,
    new_tokens: int,
    repetitions: int,
    warmup: int,
    progress: Callable[[str], None],
) -> Rounds:
    """Per repetition and setting two runs: one as it is, one of a single token with the spans.

    Every sample holds, in seconds, "ttft", "decode", the parts (:data:`PARTS`) and "other";
    "tokens_per_second"; and of the key-value cache after prefill "kv_bytes" and "kv_tokens". Those
    of the runs for memory hold "peak_memory" and "extra_memory" in bytes.

    Raises:
        hiprune.HiPruneError: a budget that this model cannot have.
    """
    device = subject.request.device
    cases = []
    for retention in (None, *retentions):
        config = None if retention is None else HiPruneConfig(retention=retention)
        facts: dict[str, Any] = {"retention": retention, "text_tokens": inputs.text_tokens}
        with _pruned(subject, config):
            pass  # raises here rather than after an hour of warm-up
        run = partial(_run, subject, inputs, config, facts, new_tokens)
        memory = partial(_run_for_memory, subject, inputs, config, new_tokens)
        cases.append(Case(label_of(retention), run, repetitions, facts, memory))
    return run_rounds(cases, warmup, device, progress)


def label_of(retention: int | float | None) -> str:
    return UNPRUNED if retention is None else f"{retention:g}"


def _pruned(subject: Subject, config: HiPruneConfig | None) -> Any:
    return nullcontext() if config is None else hiprune.prune(subject.model, config)


def _run(
    subject: Subject,
    inputs: Inputs,
    config: HiPruneConfig | None,
    facts: dict[str, Any],
    new_tokens: int,
) -> dict[str, float]:
    clock = clock_of(subject.request.device)
    with _pruned(subject, config) as handle:
        sample = timed_generation(subject, inputs, new_tokens, clock.synchronise)
        watch = Stopwatch(clock)
        with instrumented(subject, watch) as cache, watch.running():
            generate(subject, inputs, 1)
        if handle is not None:
            facts["kept_tokens"] = sum(s.indices.numel() for s in handle.selections)
    seconds = watch.seconds()
    sample |= {part: seconds.get(part, 0.0) for part in (*PARTS, OTHER)}
    sample["kv_tokens"], sample["kv_bytes"] = cache.size()
    return sample


def _run_for_memory(
    subject: Subject, inputs: Inputs, config: HiPruneConfig | None, new_tokens: int
) -> dict[str, float]:
    memory = PeakMemory(subject.request.device)
    with _pruned(subject, config):
        memory.reset()
        generate(subject, inputs, new_tokens)
        return memory.read()
