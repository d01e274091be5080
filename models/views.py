"""LLaVA's families, and an image's views: of LLaVA-NeXT a base view, then a grid of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiprune.config import Family
from hiprune.errors import HiPruneError
from hiprune.selection import TokenSelection

FAMILIES = (
    Family("llava", "HIPRUNE_RETENTION", 192, 576, object_layer=9, encoder_layers=24),
    Family("llava_next", "HIPRUNE_RETENTION", 640, 2880, object_layer=9, encoder_layers=24),
)


def tower_size(vision: Any, max_views: int) -> dict[str, int]:
    """What defaults depend on: the tower's layers, and the most tokens of an image."""
    side = vision.config.image_size // vision.config.patch_size
    return {"layers": vision.config.num_hidden_layers, "tokens": max_views * side**2}


def check_budget(
    retention: int | float,
    views: int,
    tokens: int,
    least: int = 1,
    why: str = "in this model",
) -> None:
    """Raise for a number of tokens that no image can keep; a share fits any.

    Args:
        retention: N' of an image.
        views: the most of an image.
        tokens: N of a view.
        least: the fewest that N' may be.
        why: of the message, what says that there are no more.
    """
    most = views * tokens
    if isinstance(retention, int) and not least <= retention <= most:
        what = f"{views} views of {tokens}" if views > 1 else "one view"
        raise HiPruneError(
            f"retention={retention}: expected {least} to {most} tokens per image ({what} {why})"
        )


def merged_order(selection: TokenSelection, side: int, columns: int) -> Tensor:
    """(N',) from view by view to: the base view, then the grid of views as one picture."""
    views, per_view = selection.indices.shape
    base = torch.arange(per_view, device=selection.indices.device)
    row, column = selection.indices[1:] // side, selection.indices[1:] % side  # (V-1, N'/V)
    view = torch.arange(views - 1, device=row.device).unsqueeze(1)
    row = row + view // columns * side
    column = column + view % columns * side
    raster = row * (columns * side) + column  # place in the merged picture
    return torch.cat([base, per_view + raster.flatten().argsort()])


def with_merged(tokens: Tensor, selection: TokenSelection) -> Tensor:
    """(B, n, C) kept tokens -> (B, N', C), with those that the method has merged after them."""
    if selection.merged is None:
        return tokens
    return torch.cat([tokens, selection.merged.to(tokens)], dim=1)


def in_order(tokens: Tensor, selection: TokenSelection, side: int, columns: int | None) -> Tensor:
    """(V, n, C) kept tokens of an image's views -> (N', C), as the language model gets them.

    View by view, or, given how many grid views are in a row, the grid as one picture. Merged tokens
    follow the base view's kept ones, and view by view those of the grid.
    """
    if columns is None:
        return with_merged(tokens, selection).flatten(0, 1)
    found = tokens.flatten(0, 1)[merged_order(selection, side, columns)]
    if selection.merged is None:
        return found
    base, grid = found.tensor_split([tokens.shape[1]])
    merged = selection.merged.to(tokens)  # (V, C', C)
    return torch.cat([base, merged[0], grid, merged[1:].flatten(0, 1)])


def max_views(pinpoints: Sequence[Sequence[int]], image_size: int) -> int:
    """The most views under anyres: the largest grid of [width, height], plus the base view."""
    return 1 + max((width // image_size) * (height // image_size) for width, height in pinpoints)


def flat_indices(selections: Sequence[TokenSelection]) -> Tensor:
    """(sum of N',) places of the kept tokens among those of all images, row after row."""
    found, start = [], 0
    for selection in selections:
        rows, tokens = selection.keep.shape  # views or frames
        first = start + tokens * torch.arange(rows, device=selection.indices.device)
        found.append((selection.indices + first.unsqueeze(1)).flatten())
        start += rows * tokens
    return torch.cat(found)
