"""Figures: what is kept stays, the rest fades, every token bears its sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from figure_cases import GREY, SIZE, chosen
from PIL import Image

from hiprune import HiPruneError, TokenSelection, select_tokens
from hiprune.figures import (
    attention_figure,
    selection_figure,
)
from hiprune.figures.marks import COLOURS, EDGE, LINE, marks, stray_buffers
from hiprune.figures.painting import FADED, paint_image, paint_ranks, paint_selection
from hiprune.figures.token_grids import anyres_grids, padded_box, single_grid

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402


def rendered(figure) -> np.ndarray:
    """(h, w, 3) uint8, the first row at the top."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def colour_at(pixels: np.ndarray, axes, grid, row: int, column: int, *off: float) -> np.ndarray:
    """What is drawn in a token: ``off`` its middle to the right and down, in its shorter sides."""
    left, top, right, bottom = grid.box
    width, height = (right - left) / grid.columns, (bottom - top) / grid.rows
    x = left + (column + 0.5) * width + off[0] * min(width, height)
    y = top + (row + 0.5) * height + off[-1] * min(width, height)
    across, up = axes.transData.transform((x, y))
    return pixels[len(pixels) - 1 - int(up), int(across)].astype(int)


def kind_of(selection: TokenSelection, flat: int) -> str:
    for kind in COLOURS:
        if getattr(selection, kind).flatten()[flat]:
            return kind
    return "dropped"


def blend(kind: str, beneath: float) -> np.ndarray:
    """A kept token is what it is in the image; a dropped one fades."""
    *colour, alpha = FADED if kind == "dropped" else (0, 0, 0, 0)
    return 255 * (alpha * np.array(colour) + (1 - alpha) * beneath)


# Where, from its middle to the right and down, a mark is of its kind's colour and where it is not.
MARKED = {"anchor": (0, 0.12), "buffer": (0.11,), "register": (0, 0.1)}
UNMARKED = {"anchor": (), "buffer": (0,), "register": ((0.13, 0),)}


@pytest.mark.parametrize("name", ["whole", "padded", "cropped", "base", "views", "tall views"])
def test_every_token_has_its_colour_at_its_place(name):
    base, views = anyres_grids(SIZE, (1, 2), side=30, columns=4)
    grid = {
        "whole": single_grid(4, 4, (0, 0, *SIZE)),
        "padded": single_grid(4, 4, padded_box(SIZE)),
        "cropped": single_grid(4, 4, (10, 0, 50, 40)),
        "base": base,
        "views": views,
        "tall views": anyres_grids(SIZE, (3, 1), side=30, columns=4)[1],
    }[name]
    selection = chosen(1 + (grid.rows * grid.columns) // 16 * (len(grid.order) > 16), 4)
    if name == "base":
        selection = chosen(3, 4)
    figure = Figure(figsize=(6, 6), dpi=200)
    axes = figure.subplots()
    paint_selection(axes, GREY, selection, grid)
    pixels = rendered(figure)
    kinds = set()
    for place, flat in enumerate(grid.order.tolist()):
        row, column = divmod(place, grid.columns)
        left, top, right, bottom = grid.box
        width, height = (right - left) / grid.columns, (bottom - top) / grid.rows
        y = top + (row + 0.5) * height + 0.28 * min(width, height)
        x = left + (column + 0.5) * width + 0.28 * min(width, height)
        inside = 0 < x < SIZE[0] and 0 < y < SIZE[1]
        kind = kind_of(selection, flat)
        kinds.add(kind)
        expected = blend(kind, 150 / 255 if inside else 0.92)
        found = colour_at(pixels, axes, grid, row, column, 0.28)
        assert np.abs(found - expected).max() <= 4, (row, column, kind)
        for marked, places in ((True, MARKED), (False, UNMARKED)):
            for off in places.get(kind, ()):
                found = colour_at(pixels, axes, grid, row, column, *np.atleast_1d(off))
                near = np.abs(found - 255 * np.array(to_rgb(COLOURS[kind]))).max() <= 4
                assert near == marked, (row, column, kind, off)
    assert kinds == {"anchor", "buffer", "register", "dropped"}
    assert axes.get_xlim() == pytest.approx(grid.box[::2])
    assert axes.get_ylim() == pytest.approx(grid.box[:0:-2])  # downwards


def test_an_outline_runs_round_a_region_and_within_it():
    """Tokens of an L: an outline on its rim, its inner corner closed, none between its tokens."""
    grid = single_grid(4, 4, (0, 0, 40, 40))
    keep = torch.zeros(1, 16, dtype=torch.bool)
    keep[0, [5, 9, 10]] = True  # below one another, and one to the right of the lower
    none = torch.zeros_like(keep)
    selection = TokenSelection(none, none, keep, keep, keep.nonzero()[:, 1][None])
    figure = Figure(figsize=(6, 6))
    axes = figure.subplots()
    image = Image.new("RGB", (40, 40), (150, 150, 150))
    paint_selection(axes, image, selection, grid)
    pixels = rendered(figure)
    blue, rim = 255 * np.array(to_rgb(COLOURS["register"])), 0.5 - EDGE - LINE / 2
    for row, column, right, down, there in (
        (1, 1, 0.1, -rim, True),  # above the upper one
        (1, 1, rim, 0, True),  # on its right
        (1, 1, -rim, 0.5, True),  # on the left of both, without a gap
        (1, 1, 0, rim, False),  # between them
        (2, 1, rim, 0, False),
        (2, 1, rim, -rim, True),  # the corner that juts in, which closes
        (2, 2, 0, -rim, True),
        (2, 2, rim, rim, True),  # a corner that juts out
        (2, 1, 0.1, rim, True),
        (1, 2, 0, 0, False),  # nothing where no token is kept
        (1, 2, -rim, 0, False),
    ):
        found = colour_at(pixels, axes, grid, row, column, right, down)
        assert (np.abs(found - blue).max() <= 4) == there, (row, column, right, down)


def test_buffers_past_the_end_of_a_row_are_told():
    """By the legend, and by a broken outline; where there are none by neither."""
    scores = torch.zeros(1, 16)
    scores[0, 7] = 1  # the last of the second row: on the flat index the third row begins beside it
    grid = single_grid(4, 4, (0, 0, *SIZE))
    image = Image.new("RGB", SIZE, (150, 150, 150))
    outlines = {}
    for neighborhood, stray in (("flat", [8]), ("grid", [])):
        selection = select_tokens(
            scores, scores, columns=4, budget=5, alpha=1.0, neighborhood=neighborhood
        )
        masks = (grid.values(mask) for mask in (selection.anchor, selection.buffer))
        assert stray_buffers(*masks).flatten().nonzero().flatten().tolist() == stray
        figure = selection_figure(image, selection, [grid])
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        told = [text.replace("\n", " ") for text in texts if "wrapped" in text]
        whole = f"{len(stray)} of these wrapped round the end of a row or the grid"
        assert told == [whole] * len(stray)
        rendered(figure)
        outlines[neighborhood] = [len(patch.get_path()) for patch in figure.axes[0].patches]
    assert outlines["flat"] != outlines["grid"]
    # The first anchor's neighbour above is beyond the grid, and the first token takes its place.
    scores = torch.zeros(1, 16)
    scores[0, 3] = 1
    selection = select_tokens(scores, scores, columns=4, budget=5, alpha=1.0)
    masks = (grid.values(mask) for mask in (selection.anchor, selection.buffer))
    assert stray_buffers(*masks).flatten().nonzero().flatten().tolist() == [0, 4]


def test_large_pictures_are_drawn_small():
    """In the places that they had."""
    large = Image.effect_noise((60, 40), 90).convert("RGB").resize((4800, 3200), 0)
    axes = Figure().subplots()
    paint_image(axes, large, single_grid(4, 4, (0, 0, 4800, 3200)))
    (drawn,) = axes.images
    assert drawn.get_array().shape == (1067, 1600, 3)
    assert drawn.get_extent() == [0, 4800, 3200, 0]
    assert large.size == (4800, 3200)


def test_one_image_of_a_batch():
    grid, selection = single_grid(4, 4, (0, 0, *SIZE)), chosen(3, 4)
    found = []
    for row, masks in ((1, selection), (None, selection[1:2]), (0, selection)):
        figure = Figure()
        paint_selection(figure.subplots(), GREY, masks, grid, row=row)
        found.append(rendered(figure))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_ranks_are_drawn_where_tokens_lie():
    grid = single_grid(4, 4, (0, 0, *SIZE))
    scores = torch.rand(1, 16, generator=torch.Generator().manual_seed(2))
    figure = Figure(figsize=(6, 6))
    axes = figure.subplots()
    drawn = paint_ranks(axes, GREY, scores, grid)
    pixels = rendered(figure)
    order = scores[0].argsort().argsort()
    for place in range(16):
        top = np.array(matplotlib.colormaps["viridis"](float(order[place]) / 15)[:3])
        expected = 255 * (0.7 * top + 0.3 * 150 / 255)
        found = colour_at(pixels, axes, grid, *divmod(place, 4), 0.2)
        assert np.abs(found - expected).max() <= 4
    assert not axes.patches
    paint_ranks(axes, GREY, scores, grid, chosen=("anchor", scores > 0.5))
    assert len(axes.patches) == 2  # an outline, and its edge
    assert (drawn.norm.vmin, drawn.norm.vmax) == (0, 1)


def test_ranks_of_views_are_taken_view_by_view():
    """A view whose scores are all lower than another's has a first and a last of its own."""
    _, grid = anyres_grids(SIZE, (1, 2), side=30, columns=2)
    scores = torch.tensor([[9.0, 9, 9, 9], [0.1, 0.2, 0.3, 0.4], [10, 20, 30, 40]])
    drawn = paint_ranks(Figure().subplots(), GREY, scores, grid)
    third = 1 / 3
    expected = [[0, third, 0, third], [2 * third, 1, 2 * third, 1]]
    assert np.allclose(drawn.get_array(), expected)


def test_refusals():
    grid = single_grid(5, 5, (0, 0, *SIZE))
    with pytest.raises(HiPruneError, match=r"\(1, 16\).*with 25 tokens"):
        paint_selection(Figure().subplots(), GREY, chosen(1, 4), grid)
    base, _ = anyres_grids(SIZE, (1, 2), side=30, columns=4)
    with pytest.raises(HiPruneError, match="with 48 tokens"):  # a view is missing
        paint_selection(Figure().subplots(), GREY, chosen(2, 4), base)
    with pytest.raises(HiPruneError, match="from 1 to 8"):
        attention_figure(GREY, torch.rand(8, 1, 25), [grid], layers=[0])


def test_kinds_are_told_apart_also_in_grey():
    """By lightness, and by the shape of the mark where print has no colours at all."""
    lightness = sorted(
        np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour in COLOURS.values()
    )
    assert np.diff(lightness).min() > 0.04
    assert set(COLOURS.values()) == {"#D55E00", "#E69F00", "#0072B2"}  # of Okabe and Ito
    one, grid = torch.ones(1, 1, dtype=torch.bool), single_grid(1, 1, (0, 0, 1, 1))
    shapes = {len(marks(one, grid, kind)[1].get_path()) for kind in COLOURS}
    assert len(shapes) == 3
