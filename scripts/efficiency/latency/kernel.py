"""received_attention on a GPU beside one FlashAttention forward of the same shape."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch

import hiprune
from hiprune import HiPruneError
from scripts.efficiency.latency.clock import clock_of, per_call
from scripts.efficiency.latency.rounds import Case, Comparison

TOKENS, HEADS, HEAD_SIZES = (16384, 1024, 4096), 16, (80, 64)
# Time over the FlashAttention forward's, at most.
TARGET_TWO_PASSES, TARGET_ONE_PASS = 1.1, 0.6
SECONDS_A_SAMPLE = 0.02  # calls of one sample are repeated to fill it
NOTE = (
    "flash: torch's scaled_dot_product_attention by its flash backend. flash_colreduce (PyPI) "
    "takes head sizes that are powers of two alone, and adds by atomics: its sums have no fixed "
    "order."
)


def kernel_cases(
    device: torch.device, repetitions: int, seed: int
) -> tuple[list[Case], list[Comparison]]:
    """Of each N and head size, in bfloat16: flash, ours in two passes and in one, flash_colreduce.

    Raises:
        HiPruneError: no CUDA GPU.
    """
    if device.type != "cuda":
        raise HiPruneError(
            f"device={str(device)!r} with part='kernel'; expected a CUDA GPU, since the kernels "
            "that are compared run on nothing else"
        )
    cases, comparisons = [], []
    for tokens in TOKENS:
        for size in HEAD_SIZES:
            shape = f"N={tokens}, {HEADS} heads of {size}"
            base = f"{shape}: flash"
            for name, target, call in _contenders(tokens, size, device, seed):
                label = f"{shape}: {name}"
                facts = {"tokens": tokens, "heads": HEADS, "head_size": size}
                cases.append(Case(label, partial(_run, call, device), repetitions, facts))
                if label != base:
                    comparisons.append(Comparison(label, base, "time", target))
    return cases, comparisons


def _contenders(
    tokens: int, size: int, device: torch.device, seed: int
) -> Sequence[tuple[str, float | None, Callable[[], object]]]:
    generator = torch.Generator(device).manual_seed(seed)
    query, key, value = (
        torch.randn(
            1, HEADS, tokens, size, generator=generator, device=device, dtype=torch.bfloat16
        )
        for _ in range(3)
    )
    scale = size**-0.5
    found = [
        ("flash", None, partial(_flash, query, key, value)),
        (
            "two passes",
            TARGET_TWO_PASSES,
            partial(hiprune.received_attention, query, key, scale),
        ),
    ]
    if "logsumexp" in inspect.signature(hiprune.received_attention).parameters:
        # The second output of the operator behind the flash backend: (1, H, N), natural log.
        flash = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
        one_pass = partial(hiprune.received_attention, query, key, scale, logsumexp=flash[1])
        found.append(("log-sum-exp given", TARGET_ONE_PASS, one_pass))
    if find_spec("flash_colreduce") and size & (size - 1) == 0:
        other = import_module("flash_colreduce").flash_colreduce
        found.append(
            ("flash_colreduce", None, partial(other, query, key, reduction="mean", scale=scale))
        )
    return found


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def _run(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds of a call ("time"): the mean of as many as fill a sample."""
    timed = partial(per_call, clock_of(device), call)
    with torch.no_grad():
        return {"time": timed(max(1, round(SECONDS_A_SAMPLE / max(timed(1), 1e-6))))}
