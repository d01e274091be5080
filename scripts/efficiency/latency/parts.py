"""The whole model, unpruned and at each budget: parts of the prefill, decoding, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

import hiprune
from hiprune import HiPruneConfig
from scripts.efficiency.latency.clock import OTHER, PeakMemory, Stopwatch, clock_of
from scripts.efficiency.latency.inputs import Inputs
from scripts.efficiency.latency.rounds import Case, Rounds, run_rounds
from scripts.efficiency.latency.spans import PARTS, instrumented
from scripts.efficiency.latency.subject import Subject

UNPRUNED = "unpruned"


class TokenTimes:
    """A streamer of transformers' generate that notes when each new token is on the host."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if self._prompt_seen:
            self.seconds.append(time.perf_counter())
        self._prompt_seen = True  # generate first hands over the prompt

    def end(self) -> None:
        pass


def generate(
    subject: Subject, inputs: Inputs, new_tokens: int, streamer: TokenTimes | None = None
) -> None:
    """Greedy decoding of exactly ``new_tokens`` tokens with a key-value cache."""
    with torch.no_grad():
        subject.model.generate(
            **inputs.arguments,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            use_cache=True,
            streamer=streamer,
        )


def timed_generation(
    subject: Subject, inputs: Inputs, new_tokens: int, synchronise: Any
) -> dict[str, float]:
    """Seconds of an un-instrumented run.

    Returns:
        "ttft": to the first token's id on the host, vision tower and selection included;
        "decode": per token after the first (missing for one new token);
        "tokens_per_second": all new tokens over the whole run.
    """
    times = TokenTimes()
    synchronise()
    start = time.perf_counter()
    generate(subject, inputs, new_tokens, times)
    if len(times.seconds) != new_tokens:
        raise RuntimeError(f"{len(times.seconds)} tokens were generated, not {new_tokens}")
    found = {
        "ttft": times.seconds[0] - start,
        "tokens_per_second": new_tokens / (times.seconds[-1] - start),
    }
    if new_tokens > 1:
        found["decode"] = (times.seconds[-1] - times.seconds[0]) / (new_tokens - 1)
    return found


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
