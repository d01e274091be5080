"""What a training run does, and the runs that made the models under assets/."""

from __future__ import annotations

from dataclasses import dataclass


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
