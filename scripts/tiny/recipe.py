"""What a training run does: its settings, and those of the models under assets/; the optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

import torch

from scripts.tiny.trainee import Trainee


@dataclass(frozen=True)
class Recipe:
    """What a training run does; kept with its state, so that a resumed run does the same."""

    family: str = "llava"
    steps: int = 4000
    seed: int = 0
    batch: int = 16
    per_kind: int = 3
    tower_steps: int = 600  # at the beginning: dense targets alone, no questions
    warm_up: int = 100
    rate: float = 2e-3
    horizon: int = 0  # steps of the whole cosine, if the run ends before; 0: ``steps``
    cool: int = 0  # the last so many steps go down in a line instead
    decay: float = 0.02
    dense: float = 1.0  # weight of the dense losses beside the answers'
    optimiser: str = "muon"
    bfloat16: bool = True


RECIPES = {
    "llava": Recipe(steps=4000),
    "llava_next": Recipe(
        family="llava_next", steps=450, horizon=800, cool=200, tower_steps=0, batch=8, rate=1e-3
    ),
    "qwen2_5_vl": Recipe(family="qwen2_5_vl", steps=2900, horizon=5000, cool=400),
}


class Optimiser:
    """Muon for the matrices of the layers, AdamW for all else, one schedule for both."""

    def __init__(self, trainee: Trainee, recipe: Recipe) -> None:
        hidden, rest = [], []
        for name, parameter in trainee.named_parameters():
            inner = ".layers." in name or ".blocks." in name or "projector" in name or "mlp" in name
            (hidden if inner and parameter.ndim == 2 else rest).append(parameter)
        if recipe.optimiser == "adamw":
            hidden, rest = [], hidden + rest
        decayed = [p for p in rest if p.ndim > 1]
        groups = [
            {"params": decayed, "weight_decay": recipe.decay},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.recipe = recipe
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.98))]
        if hidden:
            self.parts.append(
                torch.optim.Muon(hidden, weight_decay=recipe.decay, adjust_lr_fn="match_rms_adamw")
            )

    def step(self, step: int) -> float:
        """Update with the rate of ``step``, clear the gradients, and return the rate."""
        rate = self.recipe.rate * schedule(step, self.recipe)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)
        return rate

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def schedule(step: int, recipe: Recipe) -> float:
    """Share of the full rate: linear warm-up, a cosine down to 2 %, or a line from it to there."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    cooling = step - (recipe.steps - recipe.cool)
    if cooling > 0:
        begin = schedule(recipe.steps - recipe.cool, recipe)
        return begin + (0.02 - begin) * min(cooling / recipe.cool, 1.0)
    end = recipe.horizon or recipe.steps
    done = (step - recipe.warm_up) / max(end - recipe.warm_up, 1)
    return 0.02 + 0.98 * 0.5 * (1 + cos(pi * min(done, 1.0)))
