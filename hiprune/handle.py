"""PruneHandle: what an applied patch changed on one model instance, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.selection import TokenSelection

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
        self.encode: Callable[[Any, Any], list[Tensor]] | None = None  # the adapter's
        self._undo: list[Callable[[], None]] = []
        self.replace(model, _MARK, self)

    def encode_images(self, pixels: Any, sizes: Any = None) -> list[Tensor]:
        """Pixels -> the kept tokens of each image, (N', C), as the language model gets them.

        Runs the vision tower, the selection (``selections`` tell it) and the projector, no prompt.

        Args:
            pixels: as the model's processor gives them.
            sizes: what comes with them: `image_sizes` of LLaVA-NeXT, `image_grid_thw` of
                Qwen2.5-VL.

        Raises:
            HiPruneError: the handle was removed, or what the model's forward raises.
        """
        if not self._undo:
            raise HiPruneError("encode_images: HiPrune was removed from this model")
        with torch.no_grad():
            return self.encode(pixels, sizes)

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute on one object until remove(); its class stays as it is."""
        attributes = vars(owner)
        if name in attributes:
            before = attributes[name]
            self.on_remove(lambda: setattr(owner, name, before))
        else:
            self.on_remove(lambda: delattr(owner, name))
        setattr(owner, name, value)

    def wrap_forward(self, module: Any, wrap: Callable[[Callable], Callable]) -> None:
        """Set a submodule's ``forward`` to ``wrap`` of what it is now.

        Beneath accelerate's hook where there is one: the hook, which brings inputs and weights to
        the module's device, goes on as before.
        """
        hooked = hasattr(module, "_hf_hook") and "_old_forward" in vars(module)
        name = "_old_forward" if hooked else "forward"
        self.replace(module, name, wrap(getattr(module, name)))

    def on_remove(self, undo: Callable[[], None]) -> None:
        """Have remove() call ``undo``; the last one added is the first one called."""
        self._undo.append(undo)

    def remove(self) -> None:
        """Restore the model; a second call does nothing."""
        while self._undo:
            self._undo.pop()()
