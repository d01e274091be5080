"""Prompts whose visual placeholders shrink to the kept tokens.

A prompt holds one placeholder a visual token. Dropping tokens makes it shorter, by another length
for every prompt of a batch: the batch is padded anew, on the side that it was padded on. How long
everything becomes is known before the vision tower has run, so all that is read on the host is
read then: a :class:`PromptPlan`. Which tokens are kept is filled in afterwards, on the device.
"""

from __future__ import annotations

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
                f"attention_mask: shape {tuple(mask.shape)}; accepted is (B, "
                f"{self.length + tail}), for the unpruned prompt and what follows it"
            )
        if mask.shape[1] == short + tail and self.length != short:
            return mask
        head = mask.new_ones(len(mask), short) if self.mask is None else self.mask.to(mask)
        return torch.cat([head, mask[:, self.length :]], dim=1)


class PromptPlan:
    """Where everything will stand, but for which of an image's tokens are kept.

    Args:
        kinds: (B, T) integer, 0 for text, else the kind of visual placeholder.
        mask: (B, T) attention mask, None: no padding. A row's own padding, before its first and
            after its last 1, is cut off as far as the longest row allows.
        spans: kind -> the images of each prompt, in order.
    """

    def __init__(
        self,
        kinds: Tensor,
        mask: Tensor | None,
        spans: Mapping[int, Sequence[Sequence[ImageSpan]]],
    ) -> None:
        batch, self._length = kinds.shape
        self._mask = mask
        edges, pads_right = _edges(mask, batch, self._length)
        # What all rows are padded by stays: a prompt that loses nothing stays as it is.
        common = min(self._length - (stop - start) for start, stop in edges)
        rows = kinds.cpu().tolist()
        lines = [
            _line(row, edge, {kind: images[number] for kind, images in spans.items()})
            for number, (row, edge) in enumerate(zip(rows, edges, strict=True))
        ]
        width = common + max(map(len, lines))

        def table(values: list[list[int]]) -> Tensor:  # -> (B, T')
            filling = ([0] * (width - len(value)) for value in values)
            both = zip(values, filling, strict=True)
            padded = [v + zeros if pads_right else zeros + v for v, zeros in both]
            return torch.tensor(padded, device=kinds.device)

        self._columns = table([[column for column, _ in line] for line in lines])
        self._visual = table([[kind for _, kind in line] for line in lines])
        self._real = table([[1] * len(line) for line in lines]).bool()
        self._padded = any(len(line) < width for line in lines)
        lost = [
            [sum(i.placeholders - i.kept for images in spans.values() for i in images[number])]
            for number in range(batch)
        ]
        self._dropped = torch.tensor(lost, device=kinds.device)

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
        f"input_ids: {list(counts)} placeholders in the prompts; accepted is what the "
        f"{len(lengths)} images of {what} need one after the other: {list(lengths)}"
    )


def _edges(mask: Tensor | None, batch: int, length: int) -> tuple[list[tuple[int, int]], bool]:
    """First and last real position of each row (past the end), and whether any is padded right."""
    if mask is None:
        return [(0, length)] * batch, False
    real = mask.bool().int()
    ends = torch.stack([real.argmax(1), real.flip(1).argmax(1)])
    edges = [(first, length - last) for first, last in ends.T.tolist()]
    return edges, any(stop < length for _, stop in edges)


def _line(
    kinds: list[int], edges: tuple[int, int], images: Mapping[int, Sequence[ImageSpan]]
) -> list[tuple[int, int]]:
    """One row: (position in the unpruned prompt, kind); a visual token's is its image's first."""
    outside = [*range(edges[0]), *range(edges[1], len(kinds))]
    if any(kinds[column] for column in outside):
        raise HiPruneError(
            "attention_mask: 0 for image placeholders at a prompt's edge; accepted is 1 for all of "
            "an image's"
        )
    waiting = {kind: iter(spans) for kind, spans in images.items()}
    left = dict.fromkeys(images, 0)  # placeholders of the current image that are still to come
    line = []
    for column in range(*edges):
        kind = kinds[column]
        if kind == 0:
            line.append((column, 0))
            continue
        if left[kind] == 0:
            span = next(waiting[kind])
            left[kind] = span.placeholders
            line += [(column, kind)] * span.kept
        left[kind] -= 1
    return line
