"""Tokens drawn at random, anew for every image."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiprune.methods.base import Images, Method, highest
from hiprune.methods.settings import count
from hiprune.selection import TokenSelection


@dataclass
class Random(Method):
    """Draws go on from call to call: every image has its own, in the order in which images come.

    A new instance begins anew from the seed, a copy goes on from where the original is, by itself.
    Threads take turns: each draw belongs to one call. Which of two threads comes first is theirs.
    """

    name: ClassVar = "random"
    shared: ClassVar = ("seed",)
    seed: int = count(0, "to 2**63 - 1", high=2**63 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._generators: dict[torch.device, torch.Generator] = {}
        self._turn = threading.Lock()

    def choose(self, images: Images) -> TokenSelection:
        return highest(self._draw((images.batch, images.tokens), images.device), images)

    def _draw(self, shape: tuple[int, int], device: torch.device) -> Tensor:
        with self._turn:
            if device not in self._generators:
                self._generators[device] = torch.Generator(device).manual_seed(self.seed)
            generator = self._generators[device]
            return torch.rand(shape, generator=generator, device=device, dtype=torch.float32)

    # Neither a lock nor a generator can be copied.
    def __getstate__(self) -> dict:
        with self._turn:
            states = {device: each.get_state() for device, each in self._generators.items()}
        return {"seed": self.seed, "states": states}

    def __setstate__(self, state: dict) -> None:
        self.seed = state["seed"]
        self.__post_init__()
        for device, each in state["states"].items():
            self._generators[device] = torch.Generator(device)
            self._generators[device].set_state(each)
