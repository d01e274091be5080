"""TokenGrid: where the tokens of a vision tower lie on the image that was given.

A model's processor resizes, pads, crops or tiles an image before the tower cuts it into tokens.
Here that is undone: every grid of tokens is a rectangle in the pixels of the image as it was given,
which may reach beyond the image (padding) or hold a part of it (a crop).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hiprune.errors import HiPruneError

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class TokenGrid:
    """A grid of tokens on an image.

    Attributes:
        name: what the tower saw there, for a figure's title.
        rows, columns: of tokens.
        box: left, top, right, bottom of the grid in pixels of the image.
        order: (rows * columns,) places of the grid's tokens, in its raster order, among the
            V * N tokens of the image's views one after the other.
        total: V * N.
    """

    name: str
    rows: int
    columns: int
    box: Box
    order: Tensor
    total: int

    def values(self, tokens: Tensor) -> Tensor:
        """What each place of the grid has: (V, N, ...) -> (rows, columns, ...).

        Raises:
            HiPruneError: tokens of an image with other views.
        """
        if tokens.ndim < 2 or tokens.shape[0] * tokens.shape[1] != self.total:
            raise HiPruneError(
                f"tokens: shape {tuple(tokens.shape)}; expected (V, N, ...) with {self.total} "
                f"tokens, as the grid of {self.rows} x {self.columns} ({self.name}) belongs to"
            )
        tokens = tokens.flatten(0, 1)
        return tokens[self.order.to(tokens.device)].unflatten(0, (self.rows, self.columns))


def single_grid(rows: int, columns: int, box: Box, name: str = "image") -> TokenGrid:
    """The grid of a tower that sees an image once."""
    return TokenGrid(name, rows, columns, box, torch.arange(rows * columns), rows * columns)


def whole_box(size: tuple[int, int]) -> Box:
    """Of an image of (width, height) that is resized as a whole (Qwen2.5-VL)."""
    return (0, 0, *size)


def padded_box(size: tuple[int, int]) -> Box:
    """Of the square that :func:`hiprune.images.pad_to_square` makes of (width, height)."""
    width, height = size
    side = max(size)
    left, top = (side - width) // 2, (side - height) // 2
    return (-left, -top, side - left, side - top)


def cropped_box(size: tuple[int, int], shortest: int, crop: tuple[int, int]) -> Box:
    """Of the centre that is cut out once the shorter side was resized.

    Args:
        size: (width, height) of the image.
        shortest: pixels of its shorter side after resizing; the longer one's are rounded down.
        crop: (width, height) of the crop, in resized pixels.
    """
    short = min(size)
    found = []
    for length, cut in zip(size, crop, strict=True):
        resized = int(shortest * length / short)
        start = int((resized - cut) / 2)
        found.append((start * length / resized, (start + cut) * length / resized))
    (left, right), (top, bottom) = found
    return (left, top, right, bottom)


def tiled_grids(size: tuple[int, int], tiles: tuple[int, int], columns: int) -> list[TokenGrid]:
    """InternVL's tiles as one picture, and the thumbnail, which follows where there are several.

    The image is resized to the tiles' canvas, whatever its proportions; tiles come row by row.

    Args:
        size: (width, height) of the image.
        tiles: rows and columns of tiles.
        columns: c, tokens of a tile's side; N = c * c.
    """
    rows_of_tiles, columns_of_tiles = tiles
    count = rows_of_tiles * columns_of_tiles
    total = (count if count == 1 else count + 1) * columns**2
    row = torch.arange(rows_of_tiles * columns).unsqueeze(1)
    column = torch.arange(columns_of_tiles * columns).unsqueeze(0)
    tile = row // columns * columns_of_tiles + column // columns
    order = tile * columns**2 + row % columns * columns + column % columns
    name = "image" if count == 1 else f"grid of {rows_of_tiles} x {columns_of_tiles} tiles"
    grids = [TokenGrid(name, *order.shape, whole_box(size), order.flatten(), total)]
    if count > 1:
        last = torch.arange(total - columns**2, total)
        grids.append(TokenGrid("thumbnail", columns, columns, whole_box(size), last, total))
    return grids


def anyres_grids(
    size: tuple[int, int], views: tuple[int, int], side: int, columns: int
) -> list[TokenGrid]:
    """LLaVA-NeXT's base view and its grid of views (paper, section "LLaVA-NeXT").

    The base view is the whole image, squeezed into a square. For the others the image is resized
    with its proportions kept until one side fills the canvas, padded evenly on the other, and cut
    into views, which come row by row.

    Args:
        size: (width, height) of the image.
        views: rows and columns of the grid of views.
        side: pixels of a view's side.
        columns: c, tokens of a view's side; N = c * c.

    Returns:
        The base view's grid, and that of the other views as one picture.
    """
    rows_of_views, columns_of_views = views
    if min(*size, *views, side, columns) < 1:
        raise HiPruneError(
            f"image of {size} in {views} views of {side} pixels and {columns} tokens: expected "
            "at least 1 of each"
        )
    width, height = size
    canvas_width, canvas_height = columns_of_views * side, rows_of_views * side
    scale = min(canvas_width / width, canvas_height / height)
    if canvas_width / width < canvas_height / height:
        new_width, new_height = canvas_width, min(math.ceil(height * scale), canvas_height)
    else:
        new_width, new_height = min(math.ceil(width * scale), canvas_width), canvas_height
    left, top = (canvas_width - new_width) // 2, (canvas_height - new_height) // 2
    x, y = width / new_width, height / new_height  # pixels of the image in one of the canvas
    box = (-left * x, -top * y, (canvas_width - left) * x, (canvas_height - top) * y)

    row = torch.arange(rows_of_views * columns).unsqueeze(1)
    column = torch.arange(columns_of_views * columns).unsqueeze(0)
    view = 1 + row // columns * columns_of_views + column // columns  # view 0 is the base view
    order = view * columns**2 + row % columns * columns + column % columns
    name = f"grid of {rows_of_views} x {columns_of_views} views"
    total = (1 + rows_of_views * columns_of_views) * columns**2
    base = torch.arange(columns**2)
    return [
        TokenGrid("base view", columns, columns, whole_box(size), base, total),
        TokenGrid(name, *order.shape, box, order.flatten(), total),
    ]
