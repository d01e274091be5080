"""A CLIP-like tower of transformers 5, run for the images of one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hiprune.models.clip import ClipTower
from hiprune.models.clip_pass import Pass
from torch import Tensor


def selects_states() -> bool:
    """Do models ask their towers for the one hidden state that they use? Since transformers 5.23.

    Before, they ask for all of them.
    """
    from transformers.utils import output_capturing

    return hasattr(output_capturing, "select_hidden_states")


def run_tower(
    tower: ClipTower,
    vision: Any,
    pixels: Tensor,
    views: Sequence[int],
    columns: Sequence[int | None],
    wanted: dict[str, Any],
    layer: int,
    normed: bool = False,
    **how: Any,
) -> tuple[Any, Tensor, Pass]:
    """The tower's output, the states that the pass takes kept tokens of, and the pass.

    Args:
        pixels: (sum of V, 3, H, W).
        views: V of each image.
        columns: as of :meth:`ClipTower.passing`.
        wanted: ``output_attentions`` and the like that the model asks the tower for.
        layer: index of the hidden state that features are, as the model's configuration has it.
        normed: are the features the tower's ``last_hidden_state``, after its last norm?
        how: ``tokens`` and ``budgets`` of :meth:`ClipTower.passing`.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    convolution = next(m for m in vision.embeddings.modules() if isinstance(m, torch.nn.Conv2d))
    device = convolution.weight.device
    if device.type != "meta":  # where weights are offloaded, accelerate moves the input
        pixels = pixels.to(device)
    with tower.passing([vision], pixels, views, columns, any(wanted.values()), **how) as run:
        if run.short:
            output, last = BaseModelOutputWithPooling(), vision(pixels)[0]
            states = run.states if run.cuts and not normed else last
        else:
            asked = layer if selects_states() else not normed
            asked = wanted.get("output_hidden_states") or asked
            output = vision(pixels, return_dict=True, **{**wanted, "output_hidden_states": asked})
            states = output.last_hidden_state
            states = states if normed else output.hidden_states[tower.output_layer]
    return output, states, run
