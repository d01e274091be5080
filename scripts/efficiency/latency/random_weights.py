"""Weights drawn at random: latency and memory do not depend on what a model has learnt."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn


def without_initialisation() -> AbstractContextManager:
    """transformers' own switch: the slow draws of construction, which are overwritten, are left."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # before transformers 5
        from transformers.modeling_utils import no_init_weights
    return no_init_weights()


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Fill every parameter in place, on its device and in its dtype.

    Matrices have a standard deviation of 1 / sqrt(inputs), which keeps activations of the order of
    one and so finite in half precision through any depth; biases are 0, norms are 1.
    """
    generators: dict[torch.device, torch.Generator] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            device = parameter.device
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(seed)
            if parameter.ndim >= 2:
                std = parameter[0].numel() ** -0.5
                parameter.normal_(std=std, generator=generators[device])
            elif name == "bias":
                parameter.zero_()
            elif name == "weight":
                parameter.fill_(1.0)
            else:  # a class token, a newline
                std = parameter.numel() ** -0.5
                parameter.normal_(std=std, generator=generators[device])
