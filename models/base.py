"""How a model of transformers is pruned, whatever its family.

A family's file says four things: how to reach its tower and the attention that is scored, what
visual tokens a prompt holds, how their features come about, and where tokens get their positions.
What the patched model does with them, in ``forward`` and ``generate``, is in
:mod:`hiprune.models.language`; how a prompt becomes shorter, in :mod:`hiprune.models.shrink`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from hiprune.models.language import LanguageModel
from hiprune.models.prompt import ImageSpan, ShrunkPrompt
from hiprune.models.transformers_version import require_transformers
from hiprune.models.visuals import Beside, Encoded, Kind
from hiprune.models.words import PromptEmbeds, given, reading
from torch import Tensor

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle


class Transformers(ABC):
    """What families of transformers share; a family's adapter says the rest.

    Attributes:
        kinds: of visual tokens.
        unused: inputs that count the unpruned prompt, and that a prompt of embeddings needs not.
        keeps_positions: do kept tokens keep their positions (M-RoPE)? Else those of a shortened
            prompt are consecutive.
        takes_both: does forward take embeddings beside ids (and pixels)? Else it is an error.
        video_frames: of a video as the family's models were trained on it; None: of any number.
        chat_template: for a checkpoint without one.
    """

    kinds: tuple[Kind, ...] = ()
    unused: tuple[str, ...] = ("token_type_ids", "mm_token_type_ids", "cache_position")
    keeps_positions = False
    takes_both = False
    video_frames: int | None = None
    chat_template: str | None = None

    # What a family says.

    @abstractmethod
    def family(self, model: Any) -> str:
        """Name of the family, as in :data:`hiprune.config.FAMILIES`."""

    @abstractmethod
    def size(self, model: Any) -> dict[str, int]:
        """What defaults depend on: ``layers`` of the tower, and the most ``tokens`` of an image
        where all have the same.
        """

    @abstractmethod
    def tower(self, model: Any, config: HiPruneConfig) -> Any:
        """What is known of the model's tower; raises before anything is changed."""

    @abstractmethod
    def patch_tower(self, model: Any, handle: PruneHandle) -> None:
        """Hooks and parts on the tower; ``handle.tower`` is there."""

    @abstractmethod
    def visuals(
        self, model: Any, tower: Any, kind: Kind, pixels: Any, sizes: Any
    ) -> tuple[list[ImageSpan], Callable[[dict], Encoded]]:
        """Images of one call: their spans, known before the tower runs, and what encodes them.

        That takes ``output_attentions`` and ``output_hidden_states``, where the caller gave them.
        """

    def sizes(self, model: Any, kind: Kind, arguments: dict[str, Any], ids: Tensor) -> Any:
        """What comes with the pixels of this kind, for :meth:`visuals`."""
        return arguments.get(kind.sizes)

    def text(self, model: Any, text: Any) -> Any:
        """What reads the prompt's words for methods that need them.

        Args:
            text: as of :func:`hiprune.apply`.
        """
        if text is not None:
            raise HiPruneError(
                f"text={type(text).__name__}: expected None, for this model's words are embeddings "
                "of its own"
            )
        return PromptEmbeds()

    def check(self, model: Any, arguments: dict[str, Any]) -> None:  # noqa: B027 (may be none)
        """Raise for arguments of this family's own that cannot be pruned."""

    def positions(
        self,
        model: Any,
        arguments: dict[str, Any],
        ids: Tensor,
        mask: Tensor | None,
        generating: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of the unpruned prompt, where its arguments give none: (..., B, T), or None for the
        model's plain count; and (B, 1), by how much they run ahead of that count.
        """
        return None, None

    def beside(self, prompt: ShrunkPrompt, encoded: dict[str, Encoded]) -> Beside | None:
        """What the pruned prompt has beside its embeddings, for a part of the family's own."""
        return None

    # What follows from it.

    def patch(
        self, model: Any, config: HiPruneConfig | None = None, text: Any = None
    ) -> PruneHandle:
        """Apply HiPrune to a model; see :func:`hiprune.apply`."""
        require_transformers()
        name, size = self.family(model), self.size(model)
        config = (
            HiPruneConfig.from_env(name, **size) if config is None else config.resolve(name, **size)
        )
        tower = self.tower(model, config)
        if tower.reads_text:
            tower.text = self.text(model, text)
        handle = PruneHandle(model, config, name, self)
        try:
            handle.tower = tower
            self.patch_tower(model, handle)
            handle.patch(model, LanguageModel, handle)
        except BaseException:
            handle.remove()
            raise
        return handle

    def encode_images(
        self, model: Any, handle: PruneHandle, pixels: Any, sizes: Any, text: Any = None
    ) -> list:
        """See :meth:`hiprune.PruneHandle.encode_images`."""
        kind = self.kinds[0]
        if kind.sizes == "image_grid_thw" and sizes is None:
            raise HiPruneError("sizes=None; expected image_grid_thw, (n, 3)")
        spans, encode = self.visuals(model, handle.tower, kind, pixels, sizes)
        with reading(given(text, len(spans), handle.tower.text)):
            encoded = encode({})
        handle.selections = encoded.selections
        return encoded.features

    def has_pixels(self, arguments: dict[str, Any]) -> bool:
        if arguments.get("mm_encoder_outputs"):
            raise HiPruneError("mm_encoder_outputs: expected pixels, which HiPrune scores")
        return any(kind.given(arguments) for kind in self.kinds)

    def has_placeholders(self, model: Any, ids: Tensor | None) -> bool:
        return ids is not None and any(
            bool((ids == getattr(model.config, kind.token)).any()) for kind in self.kinds
        )

    def run_as_text(self, model: Any, arguments: dict[str, Any]) -> None:
        """Placeholders without pixels are the model's own business; say so."""
        if self.has_placeholders(model, arguments.get("input_ids")):
            warnings.warn(
                f"input_ids: image placeholders without {self.kinds[0].pixels} run as they are, as "
                "in the unpatched model; nothing of them is pruned",
                stacklevel=4,
            )
