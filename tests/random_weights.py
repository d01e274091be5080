"""Random weights that behave: peaked attention, one-word answers that depend on the image."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

# What the tiny tokenizers are trained on.
CORPUS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.",
    "USER: Is there a red circle in the image? Answer the question using a single word or phrase.",
    "ASSISTANT: Yes ASSISTANT: No ASSISTANT: Yes ASSISTANT: No",
    "system You are a helpful assistant. user assistant",
    "Is there a blue square, a green triangle, a cat, a cup of coffee, a rocket or a coin?",
    "How many objects are there? What colour is it? Where is the yellow star, left or right?",
)


def randomise(module: nn.Module) -> None:
    """Weights of order 1 / sqrt(width), queries and keys larger: attention that has peaks."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            gain = 2.0 if "q_proj" in name or "k_proj" in name or "qkv" in name else 1.0
            nn.init.normal_(parameter, std=gain * parameter.shape[1] ** -0.5)


def answer_yes_or_no(
    embedding: nn.Embedding,
    layers: Iterable[nn.Module],
    projector: nn.Linear,
    head: nn.Linear,
    answers: list[int],
    end: int,
    states: Callable[[], Tensor],
) -> None:
    """Have a model say Yes or No, as its random layers make of the image, and then stop.

    The first hidden dimension is kept for "an answer was given": only the answers' embeddings set
    it, no layer writes to it, and the end token reads it.

    Args:
        embedding, layers, head: of the language model.
        projector: the last layer of what turns visual features into its tokens.
        answers, end: ids of the two answers and of the end token.
        states: (B, C) last hidden states of B random images, once all of that is set.
    """
    nn.init.normal_(embedding.weight, std=0.3)  # below the image's tokens, for these to matter
    embedding.weight.data[:, 0] = 0
    embedding.weight.data[answers, 0] = 50.0
    for layer in layers:
        layer.self_attn.o_proj.weight.data[0] = 0
        layer.mlp.down_proj.weight.data[0] = 0
    projector.weight.data *= 3
    projector.weight.data[0] = 0
    projector.bias.data[0] = 0

    direction = _direction(states())
    head.weight.data.zero_()
    head.weight.data[answers[0]], head.weight.data[answers[1]] = direction, -direction
    head.weight.data[end, 0] = 10.0


def _direction(states: Tensor) -> Tensor:
    """(B, C) -> (C,) the direction in which the states differ most.

    Without it one answer would win for nearly all images, and pruning would change none.
    """
    mean = states.mean(dim=0)
    principal = torch.linalg.svd(states - mean).Vh[0]
    direction = principal - (principal @ mean) / (mean @ mean) * mean
    direction[0] = 0
    return direction / direction.norm()
