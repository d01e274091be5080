"""How a model of transformers is pruned, whatever its family.

A family's file says four things: how to reach its tower and the attention that is scored, what
visual tokens a prompt holds, how their features come about, and where tokens get their positions.
What the patched model does with them, in ``forward`` and ``generate``, is in
:mod:`hiprune.models.language`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hiprune.models.language import Beside, LanguageModel, ShortPrompt
from hiprune.models.prompt import ImageSpan, PromptPlan, ShrunkPrompt, images_of_rows
from hiprune.models.transformers_version import require_transformers
from hiprune.models.words import PromptEmbeds, given, reading
from torch import Tensor

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle
from hiprune.selection import TokenSelection


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


@dataclass
class Shrunk:
    """What became of a prompt's arguments."""

    short: ShortPrompt
    encoded: dict[str, Encoded] = field(default_factory=dict)  # kind's name -> what it was made of
    beside: Beside | None = None


class Transformers(ABC):
    """What families of transformers share; a family's adapter says the rest.

    Attributes:
        kinds: of visual tokens.
        unused: inputs that count the unpruned prompt, and that a prompt of embeddings needs not.
        keeps_positions: do kept tokens keep their positions (M-RoPE)? Else those of a shortened
            prompt are consecutive.
        takes_both: does forward take embeddings beside ids (and pixels)? Else it is an error.
    """

    kinds: tuple[Kind, ...] = ()
    unused: tuple[str, ...] = ("token_type_ids", "mm_token_type_ids", "cache_position")
    keeps_positions = False
    takes_both = False

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
        return any(_given(arguments.get(kind.pixels)) for kind in self.kinds)

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

    def shrink(
        self,
        model: Any,
        handle: PruneHandle,
        arguments: dict[str, Any],
        wanted: dict[str, Any] | None,
    ) -> Shrunk:
        """Ids, pixels, mask, positions and labels of T positions -> embeddings and those of T'.

        Args:
            arguments: of forward or generate, by name; changed in place.
            wanted: ``output_attentions`` and the like that forward is asked for; None for generate.
        """
        ids, mask = arguments.pop("input_ids", None), arguments.get("attention_mask")
        if ids is None:
            raise HiPruneError("input_ids=None with pixels; expected the prompt's ids")
        if mask is not None and getattr(mask, "shape", None) != ids.shape:
            shape = tuple(getattr(mask, "shape", ())) or type(mask).__name__
            raise HiPruneError(
                f"attention_mask: {f'shape {shape}' if isinstance(shape, tuple) else shape}; "
                f"expected that of input_ids, {tuple(ids.shape)}"
            )
        if (
            wanted is not None
            and arguments.get("inputs_embeds") is not None
            and not self.takes_both
        ):
            raise HiPruneError("inputs_embeds beside input_ids and pixels; expected one of the two")
        self.check(model, arguments)

        # What is read on the host is read here, before the tower runs.
        kinds, spans, encoders, prompts = torch.zeros_like(ids), {}, {}, {}
        for kind in self.kinds:
            pixels = arguments.pop(kind.pixels, None)
            if not _given(pixels):
                continue
            sizes = self.sizes(model, kind, arguments, ids)
            images, encode = self.visuals(model, handle.tower, kind, pixels, sizes)
            here = ids == getattr(model.config, kind.token)
            rows = images_of_rows(
                here.sum(dim=1).tolist(), [image.placeholders for image in images], kind.pixels
            )
            kinds = kinds + kind.number * here
            spans[kind.number] = [[images[number] for number in row] for row in rows]
            encoders[kind] = encode
            prompts[kind] = [number for number, row in enumerate(rows) for _ in row]
        words = None
        if handle.tower.reads_text:
            words = handle.tower.text.of_prompts(model, ids, mask, kinds > 0)
        from_right = bool(arguments.get("logits_to_keep"))
        plan = PromptPlan(kinds, mask, spans, from_right)
        positions, ahead = arguments.pop("position_ids", None), None
        given = positions is not None
        if given:
            positions = positions.expand(*positions.shape[:-2], *ids.shape)
        else:
            positions, ahead = self.positions(model, arguments, ids, mask, wanted is None)

        shrunk = Shrunk(ShortPrompt(ahead=ahead))
        for kind, encode in encoders.items():
            with reading(words and [words[number] for number in prompts[kind]]):
                shrunk.encoded[kind.name] = encode(wanted or {})
        places = {kind.number: torch.cat(shrunk.encoded[kind.name].places) for kind in encoders}
        handle.selections = [s for e in shrunk.encoded.values() for s in e.selections]
        prompt = shrunk.short.prompt = plan.fill(places)

        embeds = arguments.pop("inputs_embeds", None)  # in place of those of the ids
        if embeds is None:
            embeds = model.get_input_embeddings()(prompt.take(ids))  # (B, T', C)
        else:
            columns = prompt.columns.to(embeds.device).unsqueeze(-1)
            embeds = embeds.gather(1, columns.expand(-1, -1, embeds.shape[-1]))
        for kind in encoders:
            features = torch.cat(shrunk.encoded[kind.name].features)  # (sum of N', C)
            embeds = prompt.put(embeds, kind.number, features)
        shrunk.beside = self.beside(prompt, shrunk.encoded)
        for name in (*self.unused, *(kind.sizes for kind in self.kinds)):
            arguments.pop(name, None)
        arguments.update(inputs_embeds=embeds, attention_mask=prompt.mask)
        if given and mask is None and prompt.mask is not None and _restarts(positions):
            raise HiPruneError(
                "position_ids: they start anew within a prompt, in a batch whose prompts become "
                "of different lengths; expected one row, or an attention_mask"
            )
        if positions is not None:
            arguments["position_ids"] = self._kept_positions(positions, prompt)
        return shrunk

    def _kept_positions(self, positions: Tensor, prompt: ShrunkPrompt) -> Tensor:
        if not self.keeps_positions:
            return consecutive(positions, prompt)
        kept = prompt.take(positions)
        if positions.ndim == 3 and len(positions) == 4:
            # A row in front of M-RoPE's three counts text alone, for the mask of packed prompts.
            kept = torch.cat([consecutive(positions[0], prompt)[None], kept[1:]])
        return kept


def _given(pixels: Any) -> bool:
    return pixels is not None and (not isinstance(pixels, Tensor) or len(pixels) > 0)


def consecutive(positions: Tensor, prompt: ShrunkPrompt) -> Tensor:
    """(B, T) positions given for the unpruned prompt -> (B, T'), without gaps where tokens went.

    They go on by the steps that the given ones make, and start anew where these do (packed
    prompts).
    """
    columns, real = prompt.columns.to(positions.device), prompt.real.to(positions.device)
    step = torch.nn.functional.pad(positions.diff(dim=1), (1, 0))
    prompts = (step <= 0).cumsum(1)  # (B, T): how often they have started anew
    kept, step, prompts = (each.gather(1, columns) for each in (positions, step, prompts))
    anew = torch.nn.functional.pad((prompts.diff(dim=1) != 0) | real.diff(dim=1), (1, 0), value=1)
    count = step.masked_fill(anew, 0).cumsum(1)
    places = torch.arange(columns.shape[1], device=columns.device).expand_as(columns)
    start = places.masked_fill(~anew, 0).cummax(1).values  # where each position's run began
    found = count - count.gather(1, start) + kept.gather(1, start)
    return found.masked_fill(~real, 0)


def _restarts(positions: Tensor) -> bool:
    rows = positions if positions.ndim == 2 else positions[0]
    return bool((rows.diff(dim=-1) < 0).any())
