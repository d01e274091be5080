"""A prompt with images, of T positions, as one of T': its arguments to forward and generate.

Ids and pixels become embeddings of the kept tokens; mask, positions and labels become theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hiprune.models.prompt import PromptPlan, ShrunkPrompt, images_of_rows
from hiprune.models.visuals import Beside, Encoded
from hiprune.models.words import reading
from torch import Tensor

from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle


@dataclass
class ShortPrompt:
    """A pruned prompt, for the steps that follow it.

    Attributes:
        prompt: how its positions became fewer.
        ahead: (B, 1) by how much positions run ahead of a plain count (M-RoPE); None: not.
    """

    prompt: ShrunkPrompt | None = None
    ahead: Tensor | None = None

    @property
    def width(self) -> int:
        """T'."""
        return self.prompt.columns.shape[1]

    def go_on(self, arguments: dict[str, Any], cached: int, keeps_positions: bool) -> None:
        """Mask and positions of a step, by hand, on a cache that began with this prompt.

        Args:
            arguments: of forward, by name; changed in place.
            cached: positions in the cache.
            keeps_positions: as of the family's adapter.

        Raises:
            HiPruneError: the cache does not hold the whole prompt.
        """
        tokens = arguments.get("input_ids")
        tokens = arguments.get("inputs_embeds") if tokens is None else tokens
        prompt, new = self.prompt, tokens.shape[1]
        if cached < self.width or len(tokens) != len(prompt.columns):
            raise HiPruneError(
                f"past_key_values: {cached} positions, in a step of {len(tokens)} rows, of a cache "
                f"that began with {len(prompt.columns)} pruned prompts of {self.width}; expected "
                "these whole"
            )
        mask = prompt.mask_with(arguments.get("attention_mask"), cached, new)
        arguments["attention_mask"] = mask
        arguments.pop("cache_position", None)
        given = arguments.get("position_ids")
        if keeps_positions == (given is not None):
            return  # tokens that keep theirs: the caller's are right; else the model counts them
        if mask is None:
            count = torch.arange(cached, cached + new, device=tokens.device).expand(len(tokens), -1)
            lost = prompt.length - self.width
        else:
            count = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new:].to(tokens.device)
            lost = prompt.dropped.to(tokens.device)
        if not keeps_positions:
            arguments["position_ids"] = count
            return
        ahead = 0 if self.ahead is None else self.ahead.to(tokens.device)
        arguments["position_ids"] = (count + lost + ahead).expand(3, -1, -1)


@dataclass
class Shrunk:
    """What became of a prompt's arguments."""

    short: ShortPrompt
    encoded: dict[str, Encoded] = field(default_factory=dict)  # kind's name -> what it was made of
    beside: Beside | None = None


def shrink(
    adapter: Any,
    model: Any,
    handle: PruneHandle,
    arguments: dict[str, Any],
    wanted: dict[str, Any] | None,
) -> Shrunk:
    """Ids, pixels, mask, positions and labels of T positions -> embeddings and those of T'.

    Args:
        adapter: of the model's family (:class:`hiprune.models.base.Transformers`).
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
    if wanted is not None and arguments.get("inputs_embeds") is not None and not adapter.takes_both:
        raise HiPruneError("inputs_embeds beside input_ids and pixels; expected one of the two")
    adapter.check(model, arguments)

    # What is read on the host is read here, before the tower runs.
    kinds, spans, encoders, prompts = torch.zeros_like(ids), {}, {}, {}
    for kind in adapter.kinds:
        there = kind.given(arguments)
        pixels = arguments.pop(kind.pixels, None)
        if not there:
            continue
        sizes = adapter.sizes(model, kind, arguments, ids)
        images, encode = adapter.visuals(model, handle.tower, kind, pixels, sizes)
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
        positions, ahead = adapter.positions(model, arguments, ids, mask, wanted is None)

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
    shrunk.beside = adapter.beside(prompt, shrunk.encoded)
    for name in (*adapter.unused, *(kind.sizes for kind in adapter.kinds)):
        arguments.pop(name, None)
    arguments.update(inputs_embeds=embeds, attention_mask=prompt.mask)
    if given and mask is None and prompt.mask is not None and _restarts(positions):
        raise HiPruneError(
            "position_ids: they start anew within a prompt, in a batch whose prompts become "
            "of different lengths; expected one row, or an attention_mask"
        )
    if positions is not None:
        arguments["position_ids"] = kept_positions(positions, prompt, adapter.keeps_positions)
    return shrunk


def kept_positions(positions: Tensor, prompt: ShrunkPrompt, keeps: bool) -> Tensor:
    """(..., B, T) of the unpruned prompt -> (..., B, T'); ``keeps``: do kept tokens keep theirs?"""
    if not keeps:
        return consecutive(positions, prompt)
    kept = prompt.take(positions)
    if positions.ndim == 3 and len(positions) == 4:
        # A row in front of M-RoPE's three counts text alone, for the mask of packed prompts.
        kept = torch.cat([consecutive(positions[0], prompt)[None], kept[1:]])
    return kept


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


def shorten_labels(arguments: dict[str, Any], prompt: ShrunkPrompt) -> None:
    """Labels, and those that are shifted already, of T positions -> of T'."""
    columns, real = prompt.columns, prompt.real
    if arguments.get("labels") is not None:
        found = prompt.take(arguments["labels"], padding=-100)
        # Padding that is new in front of a prompt does not make its first token a target.
        arguments["labels"] = found.masked_fill((columns == 0).to(found.device), -100)
    shifted = arguments.get("shift_labels")
    if shifted is not None:
        # A position's target is the next kept one's label, which stands one before that one; the
        # last position keeps its own.
        after, follows = (torch.nn.functional.pad(x[:, 1:], (0, 1)) for x in (columns, real))
        place = torch.where(follows, after - 1, columns)
        found = shifted.gather(1, place.clamp(min=0).to(shifted.device))
        nothing = (place < 0) | ~(follows | real)
        arguments["shift_labels"] = found.masked_fill(nothing.to(found.device), -100)
