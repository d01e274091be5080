"""What a family says of a prompt's visual tokens: their kinds, what the tower made of them, and
what goes beside the embeddings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hiprune.selection import TokenSelection

# Name of the argument that takes what is beside the embeddings through the model's own methods.
BESIDE = "hiprune_beside"


@dataclass(frozen=True)
class Kind:
    """A kind of visual token in a family's prompts.

    Attributes:
        number: in a prompt's plan, from 1.
        name: "image" or "video".
        pixels, sizes: the arguments that it comes in; ``sizes`` "" where there is none.
        token: name, in the model's configuration, of the placeholder's id.
    """

    number: int
    name: str
    pixels: str
    sizes: str
    token: str

    def given(self, arguments: dict[str, Any]) -> bool:
        """Are there pixels of it among the arguments?"""
        pixels = arguments.get(self.pixels)
        return pixels is not None and (not isinstance(pixels, Tensor) or len(pixels) > 0)


@dataclass
class Encoded:
    """Images, or videos, that the tower has seen.

    Attributes:
        features: (N', C) of each.
        selections: one each.
        places: (N',) of each, the placeholder, among its image's, that each token stands for.
        output: what the model's own get_image_features would return, with the kept tokens as its
            ``pooler_output``; None where there is none.
        planes: (sum of N', C) of all of them, each more features of the same tokens (DeepStack).
    """

    features: list[Tensor]
    selections: list[TokenSelection]
    places: list[Tensor]
    output: Any = None
    planes: list[Tensor] = field(default_factory=list)


class Beside(ABC):
    """What a pruned prompt has beside its embeddings, for a part of ours within the model."""

    taken = False

    @abstractmethod
    def copies(self, count: int) -> Beside:
        """The same for each prompt so many times, as beams and several answers need it."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What the part adds to the arguments that it was called with."""

    def take(self) -> dict[str, Any]:
        self.taken = True
        return self.arguments()
