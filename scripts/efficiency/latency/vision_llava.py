"""LLaVA's image encoding: as the package does it, with HiPrune, and the released code's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import hiprune
from hiprune import HiPruneConfig
from scripts.efficiency.latency.comparisons import Comparison
from scripts.efficiency.latency.errors import BenchError
from scripts.efficiency.latency.inputs import Inputs
from scripts.efficiency.latency.subject import Subject
from scripts.efficiency.latency.vision import Variant

# Time over the reference's, at most.
TARGET_OVER_UNPATCHED, TARGET_OVER_RELEASED = 0.95, 0.5


def llava_variants(
    subject: Subject,
    inputs: Inputs,
    budgets: Sequence[int | float],
    repetitions: int,
    targets: bool,
) -> tuple[list[Variant], list[Comparison]]:
    """Unpatched, and at each budget HiPrune and the released code's way.

    Raises:
        BenchError: LLaVA-NeXT in the `llava` package, whose views no single call encodes.
        hiprune.HiPruneError: a budget that this model cannot have.
    """
    if subject.is_llava_package and subject.family == "llava_next":
        raise BenchError(
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
        variants += [
            Variant(pruned, partial(_pruned, subject, inputs, config), repetitions, facts),
            Variant(released, partial(_released, subject, inputs, config), repetitions, facts),
        ]
        for base, target in ((unpatched, TARGET_OVER_UNPATCHED), (released, TARGET_OVER_RELEASED)):
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
    pixels = inputs.pixels.flatten(0, -4)  # (V, 3, H, W)

    def encode() -> int:
        out = tower(pixels, output_attentions=True, output_hidden_states=True)
        scores = [
            # (V, H, 1+N, 1+N) -> (V, N), CLS dropped
            out.attentions[layer].float().mean(dim=(1, 2))[:, 1:]
            for layer in (config.object_layer - 1, -2)
        ]
        selection = hiprune.select_tokens(
            *scores,
            columns=columns,
            budget=config.budget(len(pixels) * columns**2) // len(pixels),
            alpha=config.alpha,
        )
        features = projector(out.hidden_states[-2][:, 1:])  # (V, N, C)
        return _count(selection.gather(features))

    try:
        yield encode
    finally:
        if not subject.is_llava_package:
            model.set_attn_implementation({"vision_config": subject.request.attention})


def _count(features: Any) -> int:
    """Tokens of (B, N, C), or of a list of (N, C)."""
    return sum(image.shape[0] for image in features)
