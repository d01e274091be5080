"""PruneHandle: what an applied patch changed on one model instance, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.selector import TokenSelection

_MARK = "_hiprune_handle"


class PruneHandle:
    """A model with HiPrune applied; :meth:`remove` gives the model back as it was.

    Attributes:
        config: the configuration, with the family's defaults filled in.
        family: "llava", "llava_next" or "qwen2_5_vl".
        selections: one TokenSelection per image of the last forward that saw images, in the order
            of the images. Its B rows are the image's views: one, or several for LLaVA-NeXT.
    """

    def __init__(self, model: Any, config: HiPruneConfig, family: str) -> None:
        if _MARK in vars(model):
            raise HiPruneError(
                f"model: this {type(model).__name__} already has HiPrune applied; accepted is an "
                "unpatched model (call remove() on the handle first)"
            )
        self.config = config
        self.family = family
        self.selections: list[TokenSelection] = []
        self._undo: list[Callable[[], None]] = []
        self.replace(model, _MARK, self)

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute on one object until remove(); its class stays as it is."""
        attributes = vars(owner)
        if name in attributes:
            before = attributes[name]
            self.on_remove(lambda: setattr(owner, name, before))
        else:
            self.on_remove(lambda: delattr(owner, name))
        setattr(owner, name, value)

    def on_remove(self, undo: Callable[[], None]) -> None:
        """Have remove() call ``undo``; the last one added is the first one called."""
        self._undo.append(undo)

    def remove(self) -> None:
        """Restore the model; a second call does nothing."""
        while self._undo:
            self._undo.pop()()
