"""What a method is: what it needs to see of images, its settings, and the choice that it makes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from hiprune.errors import HiPruneError
from hiprune.methods.settings import Setting, as_python
from hiprune.selection import TokenSelection, select_tokens

# All that a method can ask for, each with its shape. An adapter computes and hands over what
# `Method.needs` names.
NEEDS = {
    "object_scores": "(B, N) attention received in the object layer l",
    "output_scores": "(B, N) attention received in the output layer",
    "cls_attention": "(B, H, N) attention of the CLS token in the output layer, a row per head",
    "keys": "(B, H, 1+N, d) of the output layer, CLS first",
    "hidden": "(B, 1+N, C) what the output layer gives, CLS first",
    "features": "(B, N, C) what the output layer gives",
    "projected": "(B, N, D) the tokens after the projector",
    "image_embeds": "(B, N, E) the tokens in the space of the text (CLIP's; else the projected)",
    "text_embeds": "(M, E) the prompt's words, M segments of them",
}
WITH_CLS = frozenset({"cls_attention", "keys", "hidden"})
OF_TEXT = frozenset({"image_embeds", "text_embeds"})


@dataclass(frozen=True)
class Images:
    """B images, or the B views of one: what is to be chosen from, whatever the method looks at.

    Attributes:
        tokens: N, of each.
        columns: c, tokens per row of the grid.
        budget: N' of each.
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
    """A dataclass whose fields are its settings.

    An instance belongs to one patched model and may be called by several threads at once.

    Attributes:
        name: as `HIPRUNE_METHOD` spells it.
        needs: names out of :data:`NEEDS`.
        shared: settings that are HiPruneConfig's fields of the same name; the others are in its
            ``settings``, and made with :mod:`hiprune.methods.settings`.
        prefix: of the variables of these others, `HIPRUNE_<NAME>_` unless said.
        merges: does it make tokens of dropped ones? They count: the kept ones are fewer by these.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    shared: ClassVar[tuple[str, ...]] = ()
    prefix: ClassVar[str] = ""
    merges: ClassVar[bool] = False

    @abstractmethod
    def choose(self, images: Images, **needed: Tensor) -> TokenSelection:
        """Exactly N' tokens of each image, out of what the method needs."""

    def kept(self, budget: int, tokens: int) -> int:
        """How many tokens an image has in the end, of N with a budget of N'."""
        return min(budget, tokens)

    def __call__(self, images: Images, **given: Tensor) -> TokenSelection:
        """:meth:`choose` out of what is given by name; what is not needed is not looked at."""
        for name in self.needs:
            if given.get(name) is None:
                raise HiPruneError(f"{name}=None: method {self.name!r} expected {NEEDS[name]}")
        needed = {name: given[name] for name in self.needs}
        # Choices have no gradients, merged tokens do; and nothing is multiplied in half precision.
        grad = torch.set_grad_enabled(torch.is_grad_enabled() and self.merges)
        with grad, torch.autocast(images.device.type, enabled=False):
            return self.choose(images, **needed)

    def __post_init__(self) -> None:
        for name, setting in self._settings().items():
            if not setting.fits(getattr(self, name)):
                raise HiPruneError(
                    f"{name}={getattr(self, name)!r} of method {self.name!r}: expected "
                    f"{setting.expected}"
                )

    @classmethod
    def own(cls) -> dict[str, Setting]:
        """Its settings but the shared ones."""
        return {n: setting for n, setting in cls._settings().items() if n not in cls.shared}

    @classmethod
    def _settings(cls) -> dict[str, Setting]:
        return {f.name: f.metadata["setting"] for f in fields(cls) if "setting" in f.metadata}

    @classmethod
    def variable(cls, setting: str) -> str:
        """The variable of the environment that sets one of its own."""
        prefix = cls.prefix or f"HIPRUNE_{cls.name.upper()}_"
        return cls.own()[setting].variable or prefix + setting.upper()

    @classmethod
    def made(cls, settings: Mapping[str, Any]) -> Method:
        """An instance; settings that are left out have their defaults. Numbers may be numpy's."""
        known = [each.name for each in fields(cls)]
        for name, value in settings.items():
            if name not in known:
                # What was meant as an input is a tensor: too long to print.
                shown = repr(value) if isinstance(value, (str, Real)) else type(value).__name__
                raise HiPruneError(
                    f"{name}={shown}: no setting of method {cls.name!r}; expected "
                    f"{' or '.join(known) or 'none'}"
                )
        return cls(**{name: as_python(value) for name, value in settings.items()})


def kept(chosen: Tensor, images: Images, merged: Tensor | None = None) -> TokenSelection:
    """(B, n) chosen tokens, distinct, in any order -> these, registers all."""
    keep = torch.zeros(images.batch, images.tokens, dtype=torch.bool, device=chosen.device)
    keep = keep.scatter(1, chosen, True)
    nothing = torch.zeros_like(keep)
    return TokenSelection(nothing, nothing, keep, keep, chosen.sort(dim=1).values, merged)


def highest(scores: Tensor, images: Images) -> TokenSelection:
    """The N' highest of (B, N) scores, registers all; ties and NaN as in :func:`select_tokens`."""
    return select_tokens(scores, scores, columns=images.columns, budget=images.budget, alpha=0.0)
