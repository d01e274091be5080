"""One run of generate: from pixel values and ids on the device to the last new token."""

from __future__ import annotations

import time
from typing import Any

import torch

from scripts.efficiency.latency.inputs import Inputs
from scripts.efficiency.latency.subject import Subject


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
