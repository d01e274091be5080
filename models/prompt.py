"""Prompts whose visual placeholders shrink to the kept tokens.

A prompt holds one placeholder a visual token. Dropping tokens makes it shorter, by another length
for every prompt of a batch: the batch is padded anew, on the side or sides that it was padded on.
How long everything becomes is known before the vision tower has run, so all that is read on the
host is read then: a :class:`PromptPlan`. Which tokens are kept is filled in afterwards, on the
device.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hiprune.errors import HiPruneError


@dataclass(frozen=True)
class ImageSpan:
    """An image in a prompt: how many placeholders it has there, and how many tokens are kept."""

    placeholders: int
    kept: int


@dataclass(frozen=True)
class ShrunkPrompt:
    """A batch of B prompts of T positions, as T' positions.

    Attributes:
        length: T.
        columns: (B, T') the position that each came from; 0 for padding.
        visual: (B, T') integer, the kind of visual token; 0 for text and padding.
        mask: (B, T') attention mask; None where nothing is masked.
        real: (B, T') bool, False for padding.
        dropped: (B, 1) tokens that each row lost.
    """

    length: int
    columns: Tensor
    visual: Tensor
    mask: Tensor | None
    real: Tensor
    dropped: Tensor

    def take(self, tensor: Tensor, padding: int | None = None) -> Tensor:
        """(..., B, T) -> (..., B, T'), with ``padding``, if given, where a row was padded."""
        columns = self.columns.to(tensor.device).expand(*tensor.shape[:-1], -1)
        tensor = tensor.gather(-1, columns)
        if padding is None:
            return tensor
        return tensor.masked_fill(~self.real.to(tensor.device), padding)

    def put(self, embeds: Tensor, kind: int, features: Tensor) -> Tensor:
        """(B, T', C) with (sum of N', C) features in the places of their kind."""
        place = (self.visual == kind).unsqueeze(-1).to(embeds.device)
        return embeds.masked_scatter(place, features.to(embeds))

    def mask_with(self, mask: Tensor | None, cached: int, new: int) -> Tensor | None:
        """(B, cached + new) attention mask of a step that goes on after the prompt.

        Args:
            mask: the caller's, which counts the unpruned prompt (or already the pruned one).
            cached: positions in the cache, the T' of the prompt included.
            new: positions of this step.
        """
        short = self.columns.shape[1]
        tail = cached + new - short
        if mask is None:
            if self.mask is None:
                return None
            return torch.nn.functional.pad(self.mask, (0, tail), value=1)
        if mask.ndim != 2 or mask.shape[1] not in (self.length + tail, short + tail):
            raise HiPruneError(
                f"attention_mask: shape {tuple(mask.shape)}; expected (B, {self.length + tail}), "
                "for the unpruned prompt and what follows it"
            )
        if mask.shape[1] == short + tail and self.length != short:
            return mask
        head = mask.new_ones(len(mask), short) if self.mask is None else self.mask.to(mask)
        return torch.cat([head, mask[:, self.length :]], dim=1)


class PromptPlan:
    """Where everything will stand, but for which of an image's tokens are kept.

    A row's own padding is what stands before its first and after its last 1; zeros between stay
    what they are. What a row loses goes

    - off its left end, and its right padding stays as it is, column by column, where any row has
      padding on the left or none has any on the right: counted from the right end, text after the
      images is where it was, which is how ``logits_to_keep`` counts and how the answers of a batch
      of left-padded prompts and right-padded answers are cut out;
    - off its right end where rows are padded on the right alone, unless ``from_right``.

    The batch becomes as short as its longest row allows. What all rows are padded by stays: a batch
    that loses nothing stays as it is.

    Args:
        kinds: (B, T) integer, 0 for text, else the kind of visual placeholder.
        mask: (B, T) attention mask, None: no padding.
        spans: kind -> the images of each prompt, in order.
        from_right: the caller counts columns from the right end, whatever the padding.

    Raises:
        HiPruneError: placeholders that are padding, or that are not those of the images.
    """

    def __init__(
        self,
        kinds: Tensor,
        mask: Tensor | None,
        spans: Mapping[int, Sequence[Sequence[ImageSpan]]],
        from_right: bool = False,
    ) -> None:
        self._length, self._mask = kinds.shape[1], mask
        first, stop = _edges(kinds, mask)  # (B, 1) each
        places = torch.arange(self._length, device=kinds.device)
        inside = (places >= first) & (places < stop)  # (B, T)
        left, right, lost = _read(kinds, inside, first, stop, spans)
        length = [self._length - sum(each) for each in zip(left, right, lost, strict=True)]
        if any(left) or not any(right) or from_right:
            width = min(left) + max(map(sum, zip(length, right, strict=True)))  # T'
            start = [width - sum(each) for each in zip(length, right, strict=True)]
        else:
            width = min(right) + max(length)
            start = [0] * len(length)
        self._padded = any(each < width for each in length)

        # How many columns each position becomes: an image's kept tokens stand in for its first
        # placeholder.
        columns = (inside & (kinds == 0)).long()  # (B, T)
        for kind, images in spans.items():
            images = [image for row in images for image in row if image.placeholders]
            counts = [image.placeholders for image in images]
            nth = list(itertools.accumulate(counts, initial=1))[:-1]  # images begin at the nth one
            nth, kept = torch.tensor(
                [nth, [image.kept for image in images]], dtype=torch.long, device=kinds.device
            )
            seen = (kinds == kind).flatten().cumsum(0)  # (B T,)
            columns.view(-1).scatter_(0, torch.searchsorted(seen, nth), kept)
        ends = columns.cumsum(1)  # (B, T): the column of the shrunk row that each position ends at

        rows = torch.tensor([start, length, lost], device=kinds.device).unsqueeze(2)
        start, length, self._dropped = rows  # (B, 1) each
        own = torch.arange(width, device=kinds.device) - start  # (B, T')
        self._real = (own >= 0) & (own < length)
        found = torch.searchsorted(ends, own, right=True)
        self._columns = found.masked_fill_(~self._real, 0)
        self._visual = kinds.gather(1, self._columns).masked_fill_(~self._real, 0)

    def fill(self, places: Mapping[int, Tensor]) -> ShrunkPrompt:
        """The prompt, once the kept tokens are known; nothing waits for the device.

        Args:
            places: kind -> (sum of N',) for all images of this kind, prompt by prompt, the number
                of the placeholder among its image's that each kept token stands for.
        """
        columns = self._columns
        for kind, found in places.items():
            offset = torch.zeros_like(columns)
            columns = columns + offset.masked_scatter(
                self._visual == kind, found.to(columns.device, columns.dtype)
            )
        if self._mask is not None:
            mask = self._mask.gather(1, columns.to(self._mask.device))
            mask = mask * self._real.to(mask)
        else:
            mask = self._real.long() if self._padded else None
        return ShrunkPrompt(self._length, columns, self._visual, mask, self._real, self._dropped)


def images_of_rows(counts: Sequence[int], lengths: Sequence[int], what: str) -> list[list[int]]:
    """The numbers of each prompt's images: in order, prompt by prompt.

    Args:
        counts: placeholders of each of the B prompts.
        lengths: placeholders that each image needs.
        what: the argument with the images, for the message.

    Raises:
        HiPruneError: the two do not fit each other.
    """
    rows, image = [], 0
    for count in counts:
        first, found = image, 0
        while found < count and image < len(lengths):
            found += lengths[image]
            image += 1
        if found != count:
            break
        rows.append(list(range(first, image)))
    else:
        if image == len(lengths):
            return rows
    raise HiPruneError(
        f"input_ids: {list(counts)} placeholders in the prompts; expected what the "
        f"{len(lengths)} images of {what} need one after the other: {list(lengths)}"
    )


def _edges(kinds: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, 1) twice: each row's first position that is not padding, and the one past its last."""
    if mask is None:
        first = kinds.new_zeros(len(kinds), 1, dtype=torch.long)
        return first, first + kinds.shape[1]
    real = mask.to(kinds.device).bool().int()
    last = real.flip(1).argmax(1, keepdim=True)
    return real.argmax(1, keepdim=True), kinds.shape[1] - last


def _read(
    kinds: Tensor,
    inside: Tensor,
    first: Tensor,
    stop: Tensor,
    spans: Mapping[int, Sequence[Sequence[ImageSpan]]],
) -> tuple[list[int], list[int], list[int]]:
    """Of each row: padding left, padding right, and how many columns it loses. One read for all."""
    counts = [(kinds == kind).sum(1) for kind in spans]
    outside = ((kinds != 0) & ~inside).sum(1)
    table = torch.stack([first[:, 0], kinds.shape[1] - stop[:, 0], outside, *counts])
    left, right, outside, *counts = table.tolist()
    if any(outside):
        raise HiPruneError(
            "attention_mask: 0 for image placeholders at a prompt's edge; expected 1 for all of an "
            "image's"
        )
    for kind, found in zip(spans, counts, strict=True):
        needed = [sum(image.placeholders for image in row) for row in spans[kind]]
        if found != needed:
            raise HiPruneError(
                f"input_ids: {found} placeholders in the prompts; expected what their images need: "
                f"{needed}"
            )
    lost = [0] * len(left)
    for images in spans.values():
        for row, own in enumerate(images):
            lost[row] += sum(image.placeholders - image.kept for image in own)
    return left, right, lost
