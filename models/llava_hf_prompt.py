"""Prompts of transformers' LLaVA models, whose image placeholders shrink to the kept tokens.

A prompt holds one placeholder a visual token. Dropping tokens makes it shorter, by another length
for every prompt of a batch: the batch is padded anew, on the side that it was padded on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hiprune.errors import HiPruneError


@dataclass(frozen=True)
class KeptImage:
    """What is left of one image.

    Attributes:
        features: (N', C), projected, in the order in which the language model reads them.
        placeholders: how many the unpruned prompt holds for the image.
        places: N' numbers below ``placeholders``, the placeholder that each feature stands for;
            labels come from there.
    """

    features: Tensor
    placeholders: int
    places: Sequence[int]


@dataclass(frozen=True)
class ShrunkPrompt:
    """A batch of B prompts of T positions, as T' positions.

    Attributes:
        length: T.
        columns: (B, T') the position that each came from; 0 for padding.
        image: (B, T') bool, a visual token.
        mask: (B, T') attention mask; None where nothing is masked.
        real: (B, T') bool, False for padding.
    """

    length: int
    columns: Tensor
    image: Tensor
    mask: Tensor | None
    real: Tensor

    def take(self, tensor: Tensor, padding: int | None = None) -> Tensor:
        """(B, T) -> (B, T'), with ``padding``, if given, where a row was padded."""
        tensor = tensor.gather(1, self.columns.to(tensor.device))
        if padding is None:
            return tensor
        return tensor.masked_fill(~self.real.to(tensor.device), padding)

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


def images_of_rows(counts: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """The numbers of each prompt's images: in order, prompt by prompt.

    Args:
        counts: placeholders of each of the B prompts.
        lengths: placeholders that each image needs.

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
        f"input_ids: {list(counts)} image placeholders in the prompts; accepted is what the "
        f"{len(lengths)} images of pixel_values need one after the other: {list(lengths)}"
    )


def shrink(placeholder: Tensor, mask: Tensor | None, rows: list[list[KeptImage]]) -> ShrunkPrompt:
    """Put each image's kept tokens in the place of its placeholders.

    Args:
        placeholder: (B, T) bool.
        mask: (B, T) attention mask, None: no padding. A row's own padding, before its first and
            after its last 1, is cut off as far as the longest row allows.
        rows: the images of each prompt.
    """
    batch, length = placeholder.shape
    pads_right = False
    spans = [(0, length)] * batch
    if mask is not None:
        ends = torch.stack([mask.bool().int().argmax(1), mask.flip(1).bool().int().argmax(1)])
        spans = [(first, length - last) for first, last in ends.T.tolist()]
        pads_right = any(stop < length for _, stop in spans)
    # What all rows are padded by stays: a prompt that loses nothing stays as it is.
    common = min(length - (stop - start) for start, stop in spans)
    places = [row.nonzero().flatten().tolist() for row in placeholder.cpu()]
    lines = [
        list(_line(span, place, images))
        for span, place, images in zip(spans, places, rows, strict=True)
    ]
    width = common + max(map(len, lines))

    def table(values: Iterable[list], padding: int) -> Tensor:  # -> (B, T')
        padded = [
            value + [padding] * (width - len(value))
            if pads_right
            else [padding] * (width - len(value)) + value
            for value in values
        ]
        return torch.tensor(padded, device=placeholder.device)

    columns = table(([column for column, _ in line] for line in lines), 0)
    image = table(([kept for _, kept in line] for line in lines), 0).bool()
    real = table(([1] * len(line) for line in lines), 0)
    if mask is not None:
        short = mask.gather(1, columns.to(mask.device)) * real.to(mask)
    else:
        short = None if all(len(line) == width for line in lines) else real
    return ShrunkPrompt(length, columns, image, short, real.bool())


def _line(span: tuple[int, int], places: list[int], images: list[KeptImage]) -> Iterable:
    """(position in the unpruned prompt, is a visual token) of one row's positions."""
    at, start = 0, {}
    for image in images:
        own = places[at : at + image.placeholders]
        at += image.placeholders
        start[own[0]] = [(own[place], 1) for place in image.places]
    skipped = set(places)
    for column in range(*span):
        if column in start:
            yield from start[column]
        elif column not in skipped:
            yield column, 0
