"""Encoding an image, from pixels to projected features: what pruning costs, or saves, there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import hiprune
from hiprune import HiPruneConfig, HiPruneError
from scripts.efficiency.latency.clock import PeakMemory, clock_of
from scripts.efficiency.latency.inputs import Inputs
from scripts.efficiency.latency.rounds import Case, Comparison
from scripts.efficiency.latency.subject import Subject

# Time over the reference's, at most.
TARGET_OVER_UNPATCHED, TARGET_OVER_RELEASED = 0.95, 0.5
TARGET_OF_OTHERS = 0.97  # InternVL and LLaVA-OneVision, over unpatched
RETENTION = 0.334  # of families with shares, where none is asked for
# Patches -> time over the unpatched tower's, at most; and the same for extra peak memory.
TIME_TARGETS = {1024: 1.00, 4096: 1.02, 16384: 1.05}
MEMORY_TARGET = 1.05
PATCHES = tuple(TIME_TARGETS)


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


def view_variants(
    subject: Subject,
    inputs: Inputs,
    budgets: Sequence[int | float],
    repetitions: int,
    targets: bool,
) -> tuple[list[Variant], list[Comparison]]:
    """Unpatched, and at each budget HiPrune and, of LLaVA's, the released code's way.

    Raises:
        HiPruneError: LLaVA-NeXT in the `llava` package, whose views no single call encodes.
        hiprune.HiPruneError: a budget that this model cannot have.
    """
    if subject.is_llava_package and subject.family == "llava_next":
        raise HiPruneError(
            "part='vision' of LLaVA-NeXT in the `llava` package, which encodes views within a "
            "prompt alone; expected LLaVA-1.5 there (either with --package transformers)"
        )
    unpatched = f"unpatched ({_attention(subject)})"
    variants = [Variant(unpatched, partial(_unpatched, subject, inputs), repetitions, {})]
    comparisons = []
    for budget in budgets:
        config = HiPruneConfig(retention=budget)
        with hiprune.prune(subject.model, config):
            pass  # raises here rather than after the first runs
        facts = {"retention": budget}
        pruned, released = f"hiprune {budget:g}", f"released {budget:g}"
        compared = [(unpatched, TARGET_OVER_UNPATCHED), (released, TARGET_OVER_RELEASED)]
        ways = [(pruned, _pruned), (released, _released)]
        if subject.request.architecture.needs_own:  # the released code knows no such model
            compared, ways = [(unpatched, TARGET_OF_OTHERS)], ways[:1]
        for label, way in ways:
            ready = partial(way, subject, inputs, config)
            variants.append(Variant(label, ready, repetitions, facts))
        for base, target in compared:
            comparisons.append(Comparison(pruned, base, "time", target if targets else None))
    return variants, comparisons


def _attention(subject: Subject) -> str:
    # transformers 4.37's CLIP knows no other.
    return "eager" if subject.is_llava_package else subject.request.attention


@contextmanager
def _unpatched(subject: Subject, inputs: Inputs) -> Iterator[Callable[[], int]]:
    model = subject.model
    if subject.is_llava_package:
        yield lambda: _count(model.encode_images(inputs.pixels))
        return
    arguments = {"pixel_values": inputs.pixels}
    if inputs.sizes is not None:
        arguments["image_sizes"] = inputs.sizes
    yield lambda: _count(model.get_image_features(**arguments).pooler_output)


@contextmanager
def _pruned(subject: Subject, inputs: Inputs, config: HiPruneConfig) -> Iterator[Callable]:
    """Tower, scores, selection and projection of the patched model; no prompt."""
    with hiprune.prune(subject.model, config) as pruned:
        yield lambda: _count(pruned.encode_images(inputs.pixels, inputs.sizes))


@contextmanager
def _released(subject: Subject, inputs: Inputs, config: HiPruneConfig) -> Iterator[Callable]:
    """As the authors' released code goes about it: every layer's map and hidden states are kept.

    Eager attention; column means of two of the maps; the projector on all tokens, then the choice.
    """
    model = subject.model
    config = config.resolve(subject.family, layers=subject.request.architecture.vision.layers)
    if subject.is_llava_package:
        tower, projector = model.get_vision_tower().vision_tower, model.get_model().mm_projector
    else:
        tower, projector = model.model.vision_tower, model.model.multi_modal_projector
        model.set_attn_implementation({"vision_config": "eager"})
    vision = subject.request.architecture.vision
    columns = vision.image_size // vision.patch
    views = inputs.pixels.shape[1] if inputs.pixels.ndim == 5 else 1  # V of an image
    pixels = inputs.pixels.flatten(0, -4)  # (sum of V, 3, H, W)

    def encode() -> int:
        out = tower(pixels, output_attentions=True, output_hidden_states=True)
        scores = [
            # (sum of V, H, 1+N, 1+N) -> (sum of V, N), CLS dropped
            out.attentions[layer].float().mean(dim=(1, 2))[:, 1:]
            for layer in (config.object_layer - 1, -2)
        ]
        selection = hiprune.select_tokens(
            *scores,
            columns=columns,
            budget=config.budget(views * columns**2) // views,
            alpha=config.alpha,
        )
        features = projector(out.hidden_states[-2][:, 1:])  # (sum of V, N, C)
        return _count(selection.gather(features))

    try:
        yield encode
    finally:
        if not subject.is_llava_package:
            model.set_attn_implementation({"vision_config": subject.request.attention})


def _count(features: Any) -> int:
    """Tokens of (B, N, C), or of a list of (N, C)."""
    return sum(image.shape[0] for image in features)


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
        HiPruneError: not the square of an even number (a token is 2 x 2 patches).
    """
    side = math.isqrt(max(patches, 0))
    if side < 2 or side % 2 or side * side != patches:
        raise HiPruneError(
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
    """(patches, 3 * 2 * p * p) pixels, as the image processor flattens them, and the grid."""
    request, side = subject.request, side_of(patches)
    generator = torch.Generator().manual_seed(seed)
    width = 3 * 2 * request.architecture.vision.patch**2
    pixels = torch.randn(patches, width, generator=generator)
    grid = torch.tensor([[1, side, side]], device=request.device)
    return pixels.to(request.device, request.dtype), grid
