"""What each method's choice costs alone, of random input: no model runs, nothing is projected."""

from __future__ import annotations

from functools import partial

import torch

import hiprune
from scripts.efficiency.latency.clock import clock_of, per_call
from scripts.efficiency.latency.rounds import Case, Comparison

HEADS, HEAD_SIZE, HIDDEN, PROJECTED, TEXT = 16, 64, 1024, 4096, 768  # LLaVA-1.5-7B's, CLIP-L's
SLOW = 0.1  # seconds
# Images or views at once, N and N' of each, c.
SHAPES = ((1, 576, 192, 24), (5, 576, 128, 24), (1, 2880, 640, 60))
NOTE = (
    "Shapes of LLaVA-1.5-7B with a CLIP-L tower; 5 x 576 is an image of LLaVA-NeXT as it is "
    "pruned, view by view, 1 x 2880 the same as one set. Input of random numbers in float32: what "
    "the tower, the scores and the text encoder cost is not in it."
)


def choice_cases(
    device: torch.device, repetitions: int, seed: int
) -> tuple[list[Case], list[Comparison]]:
    """A case a method and shape."""
    cases = []
    for images, tokens, budget, columns in SHAPES:
        inputs = _inputs(images, tokens, device, seed)
        for name in hiprune.methods():
            call = partial(hiprune.choose_tokens, name, budget=budget, columns=columns, **inputs)
            facts = {"images": images, "tokens": tokens, "budget": budget}
            label = f"{images} x {tokens}, {budget} kept: {name}"
            cases.append(Case(label, partial(_run, call, device), repetitions, facts))
    return cases, []


def _inputs(images: int, tokens: int, device: torch.device, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    draw = partial(torch.randn, generator=generator, device=device)
    hidden = draw(images, 1 + tokens, HIDDEN)
    return {
        "object_scores": draw(images, tokens).softmax(dim=1),
        "output_scores": draw(images, tokens).softmax(dim=1),
        "cls_attention": draw(images, HEADS, tokens).softmax(dim=2),
        "keys": draw(images, HEADS, 1 + tokens, HEAD_SIZE),
        "hidden": hidden,
        "features": hidden[:, 1:],
        "projected": draw(images, tokens, PROJECTED),
        "image_embeds": draw(images, tokens, TEXT),
        "text_embeds": draw(1, TEXT),
    }


def _run(call: partial, device: torch.device) -> dict[str, float]:
    """Seconds of a call ("time"); of a quick one the mean of as many more as fill a sample."""
    timed = partial(per_call, clock_of(device), call)
    first = timed(1)  # what the case before has left of caches and memory tells in a quick one
    return {"time": first if first > SLOW else timed(round(SLOW / max(first, 1e-4)))}
