"""Qwen2.5-VL's vision tower, by the number of patches: unpatched and with a third kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

import hiprune
from hiprune import HiPruneConfig
from scripts.efficiency.latency.comparisons import Comparison
from scripts.efficiency.latency.errors import BenchError
from scripts.efficiency.latency.subject import Subject
from scripts.efficiency.latency.vision import Variant

RETENTION = 0.334
# Patches -> time over the unpatched tower's, at most; and the same for extra peak memory.
TIME_TARGETS = {1024: 1.00, 4096: 1.02, 16384: 1.05}
MEMORY_TARGET = 1.05
PATCHES = tuple(TIME_TARGETS)


def qwen_variants(
    subject: Subject,
    patches: Sequence[tuple[int, int]],
    budgets: Sequence[int | float],
    seed: int,
    targets: bool,
) -> tuple[list[Variant], list[Comparison]]:
    """Of each (patches, repetitions) the unpatched tower and the patched one at each budget."""
    for budget in budgets:
        with hiprune.prune(subject.model, HiPruneConfig(retention=budget)):
            pass  # raises here rather than after the first runs
    variants, comparisons = [], []
    for count, repetitions in patches:
        pixels, grid = _random_image(subject, count, seed)
        unpatched = f"{count} patches, unpatched"
        facts = {"patches": count}
        variants.append(
            Variant(unpatched, partial(_tower, subject, pixels, grid, None), repetitions, facts)
        )
        for budget in budgets:
            label = f"{count} patches, hiprune {budget:g}"
            ready = partial(_tower, subject, pixels, grid, HiPruneConfig(retention=budget))
            variants.append(Variant(label, ready, repetitions, {**facts, "retention": budget}))
            limits = (TIME_TARGETS.get(count), MEMORY_TARGET) if targets else (None, None)
            for metric, target in zip(("time", "extra_memory"), limits, strict=True):
                comparisons.append(Comparison(label, unpatched, metric, target))
    return variants, comparisons


def side_of(patches: int) -> int:
    """Patches in a row of a square image.

    Raises:
        BenchError: not the square of an even number (a token is 2 x 2 patches).
    """
    side = math.isqrt(max(patches, 0))
    if side < 2 or side % 2 or side * side != patches:
        raise BenchError(
            f"patches={patches}: expected the square of an even number, as "
            f"{', '.join(map(str, PATCHES))}"
        )
    return side


@contextmanager
def _tower(
    subject: Subject, pixels: torch.Tensor, grid: torch.Tensor, config: HiPruneConfig | None
) -> Iterator[Callable[[], int]]:
    handle = None if config is None else hiprune.apply(subject.model, config)

    def encode() -> int:
        if handle is None:
            features = subject.model.model.get_image_features(pixels, grid).pooler_output
        else:
            features = handle.encode_images(pixels, grid)
        return sum(len(image) for image in features)

    try:
        yield encode
    finally:
        if handle is not None:
            handle.remove()


def _random_image(subject: Subject, patches: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(patches, 3 * 2 * 14 * 14) pixels, as the image processor flattens them, and the grid."""
    request, side = subject.request, side_of(patches)
    generator = torch.Generator().manual_seed(seed)
    width = 3 * 2 * request.architecture.vision.patch**2
    pixels = torch.randn(patches, width, generator=generator)
    grid = torch.tensor([[1, side, side]], device=request.device)
    return pixels.to(request.device, request.dtype), grid
