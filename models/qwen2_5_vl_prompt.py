"""Qwen2.5-VL's prompts, which shrink with their images.

An image stands in `input_ids` as one placeholder a token. Dropping tokens shortens the rows of a
batch by different lengths, so they are padded anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hiprune.errors import HiPruneError


@dataclass(frozen=True)
class ShrunkPrompt:
    """Where the B rows of T' positions come from in the prompt of T positions.

    Attributes:
        columns: (B, T') the position in the unpruned prompt.
        real: (B, T') bool, False where a row is padded.
        dropped: (B,) tokens that the row lost.
    """

    columns: Tensor
    real: Tensor
    dropped: Tensor

    def take(self, tensor: Tensor) -> Tensor:
        """(B, T) -> (B, T'); positions (R, B, T) -> (R, B, T')."""
        return tensor.gather(-1, self.columns.to(tensor.device).expand(*tensor.shape[:-1], -1))


def shrink(keep: Tensor, mask: Tensor | None) -> ShrunkPrompt:
    """Drop positions of a batch and pad its rows to the longest one that is left.

    Args:
        keep: (B, T) bool, False for the visual tokens that are dropped.
        mask: (B, T) attention mask, 0 for padding; None: no padding. Rows are padded anew on the
            side that it is padded on, on the left where it is not.
    """
    mask = torch.ones_like(keep) if mask is None else mask.bool()
    stays = keep & mask
    dropped = (~keep & mask).sum(dim=1)
    if bool(keep.all()):  # nothing dropped: the prompt as it is, padding and all
        columns = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
        return ShrunkPrompt(columns, mask, dropped)
    length = int(stays.sum(dim=1).max())
    if bool((~mask[:, -1]).any()) and bool(mask[:, 0].all()):
        columns = (~stays).int().argsort(dim=1, stable=True)[:, :length]  # right padding
    else:
        columns = stays.int().argsort(dim=1, stable=True)[:, -length:]
    return ShrunkPrompt(columns, stays.gather(1, columns), dropped)


def keep_flags(is_visual: Tensor, flags: Sequence[Tensor], what: str) -> Tensor:
    """(B, T) keep mask of a prompt's visual tokens.

    Args:
        is_visual: (B, T) bool, the placeholders, in the order of the images.
        flags: (N,) bool of each image, True for a kept token.
        what: the kind of placeholder, for the message.

    Raises:
        HiPruneError: not as many placeholders as the images have tokens.
    """
    flat = torch.cat(list(flags)).to(is_visual.device)
    if int(is_visual.sum()) != len(flat):
        raise HiPruneError(
            f"input_ids: {int(is_visual.sum())} {what} placeholders; accepted are {len(flat)}, the "
            f"tokens of the {len(flags)} {what}s given"
        )
    keep = torch.ones_like(is_visual)
    return keep.masked_scatter(is_visual, flat)


def generation_lengths(settings: dict, defaults: object, prompt: int) -> dict:
    """`max_length` and `min_length` count the unpruned prompt: turn them into new tokens.

    Args:
        settings: keyword arguments of generate.
        defaults: the generation configuration that they are laid over.
        prompt: T, tokens of the unpruned prompt.

    Returns:
        The settings with `max_new_tokens` and `min_new_tokens` in their place.

    Raises:
        HiPruneError: a max_length that leaves no token to generate.
    """
    settings = dict(settings)
    for bound in ("max", "min"):
        length, new = f"{bound}_length", f"{bound}_new_tokens"
        found = settings.pop(length, None)
        if found is None:
            found = getattr(defaults, length, None)
        given = settings.get(new)
        if given is None:
            given = getattr(defaults, new, None)
        if given is not None or not found:
            continue
        if bound == "max" and found <= prompt:
            raise HiPruneError(f"max_length={found}: accepted is above the prompt's {prompt}")
        settings[new] = max(found - prompt, 0)
    return settings
