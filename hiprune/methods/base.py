"""What a method is: what it needs to see of images, its settings, and the choice that it makes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from hiprune.errors import HiPruneError
from hiprune.selection import TokenSelection, select_tokens

# All that a method can ask for. An adapter computes and hands over what `Method.needs` names.
NEEDS = {
    "object_scores": "(B, N) attention received in the object layer l",
    "output_scores": "(B, N) attention received in the output layer",
    "cls_attention": "(B, H, N) attention of the CLS token in the output layer, a row per head",
}


@dataclass(frozen=True)
class Images:
    """B images, or the B views of one: what is to be chosen from, whatever the method looks at.

    Attributes:
        tokens: N, of each.
        columns: c, tokens per row of the grid.
        budget: N' of each, at most N.
        device: of the selection.
    """

    batch: int
    tokens: int
    columns: int
    budget: int
    device: torch.device

    @classmethod
    def like(cls, tensor: Tensor, columns: int, budget: int) -> Images:
        """Those that ``tensor`` (B, N, ...) tells of."""
        batch, tokens = tensor.shape[:2]
        return cls(batch, tokens, columns, min(budget, tokens), tensor.device)


class Method(ABC):
    """A dataclass whose fields are its settings, each named as HiPruneConfig's field is.

    An instance belongs to one patched model and may be called by several threads at once.

    Attributes:
        name: as `HIPRUNE_METHOD` spells it.
        needs: names out of :data:`NEEDS`.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def choose(self, images: Images, **needed: Tensor) -> TokenSelection:
        """Exactly N' tokens of each image, out of what the method needs."""

    def __call__(self, images: Images, **given: Tensor) -> TokenSelection:
        """:meth:`choose` out of what is given by name; what is not needed is not looked at."""
        for name in self.needs:
            if given.get(name) is None:
                raise HiPruneError(f"{name}=None: method {self.name!r} expected {NEEDS[name]}")
        return self.choose(images, **{name: given[name] for name in self.needs})

    @classmethod
    def settings(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    @classmethod
    def configured(cls, config: Any) -> Method:
        """An instance with a HiPruneConfig's settings."""
        return cls(**{name: getattr(config, name) for name in cls.settings()})


def highest(scores: Tensor, images: Images) -> TokenSelection:
    """The N' highest of (B, N) scores, registers all; ties and NaN as in :func:`select_tokens`."""
    return select_tokens(scores, scores, columns=images.columns, budget=images.budget, alpha=0.0)
