"""Figures: every token bears the colour of what it is, at its place; legends count right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from hiprune import HiPruneError, TokenSelection, select_tokens
from hiprune.figures import (
    add_legend,
    attention_figure,
    caption,
    counts,
    selection_figure,
    tokens_figure,
)
from hiprune.figures.painting import COLOURS, paint_ranks, paint_selection
from hiprune.figures.token_grids import anyres_grids, padded_box, single_grid

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

SIZE = (60, 40)
GREY = Image.new("RGB", SIZE, (150, 150, 150))


def chosen(views: int, columns: int, seed: int = 0) -> TokenSelection:
    noise = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, views, columns**2, generator=noise)
    budget = columns**2 // 2
    return select_tokens(*scores, columns=columns, budget=budget, alpha=0.4)


def rendered(figure) -> np.ndarray:
    """(h, w, 3) uint8, the first row at the top."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def colour_at(pixels: np.ndarray, axes, grid, row: int, column: int, off: float) -> np.ndarray:
    """What is drawn within a token: at its middle, or ``off`` of its width beside."""
    left, top, right, bottom = grid.box
    x = left + (column + 0.5 + off) * (right - left) / grid.columns
    y = top + (row + 0.5 + off) * (bottom - top) / grid.rows
    across, up = axes.transData.transform((x, y))
    return pixels[len(pixels) - 1 - int(up), int(across)].astype(int)


def kind_of(selection: TokenSelection, flat: int) -> str:
    for kind in COLOURS:
        if getattr(selection, kind).flatten()[flat]:
            return kind
    return "dropped"


def blend(kind: str, beneath: float) -> np.ndarray:
    """The tint of a kind, or the dimming, over a grey."""
    colour, alpha = ((0, 0, 0), 0.68) if kind == "dropped" else (to_rgb(COLOURS[kind]), 0.3)
    return 255 * (alpha * np.array(colour) + (1 - alpha) * beneath)


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
    figure = Figure(figsize=(6, 6))
    axes = figure.subplots()
    paint_selection(axes, GREY, selection, grid)
    pixels = rendered(figure)
    kinds = set()
    for place, flat in enumerate(grid.order.tolist()):
        row, column = divmod(place, grid.columns)
        left, top, right, bottom = grid.box
        y = top + (row + 0.75) * (bottom - top) / grid.rows
        x = left + (column + 0.75) * (right - left) / grid.columns
        inside = 0 < x < SIZE[0] and 0 < y < SIZE[1]
        kind = kind_of(selection, flat)
        kinds.add(kind)
        expected = blend(kind, 150 / 255 if inside else 0.92)
        found = colour_at(pixels, axes, grid, row, column, 0.25)
        assert np.abs(found - expected).max() <= 4, (row, column, kind)
    assert kinds == {"anchor", "buffer", "register", "dropped"}
    assert axes.get_xlim() == pytest.approx(grid.box[::2])
    assert axes.get_ylim() == pytest.approx(grid.box[:0:-2])  # downwards


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
        expected = 255 * (0.62 * top + 0.38 * 150 / 255)
        found = colour_at(pixels, axes, grid, *divmod(place, 4), off=0.2)
        assert np.abs(found - expected).max() <= 4
    assert (drawn.norm.vmin, drawn.norm.vmax) == (0, 1)


def test_ranks_of_views_are_taken_view_by_view():
    """A view whose scores are all lower than another's has a first and a last of its own."""
    _, grid = anyres_grids(SIZE, (1, 2), side=30, columns=2)
    scores = torch.tensor([[9.0, 9, 9, 9], [0.1, 0.2, 0.3, 0.4], [10, 20, 30, 40]])
    drawn = paint_ranks(Figure().subplots(), GREY, scores, grid)
    third = 1 / 3
    expected = [[0, third, 0, third], [2 * third, 1, 2 * third, 1]]
    assert np.allclose(drawn.get_array(), expected)


def test_counts_captions_and_legend():
    base, views = anyres_grids(SIZE, (1, 2), side=30, columns=4)
    selection = chosen(3, 4)
    found = counts(selection)
    assert found["anchor"] == int(selection.anchor.sum()) > 0
    assert sum(found.values()) == 48
    assert found["dropped"] == 24
    assert caption(selection, base) == "base view: 8 of 16 kept"
    assert caption(selection, views) == "grid of 1 x 2 views: 16 of 32 kept"
    figure = Figure(layout="constrained")
    figure.subplots()
    add_legend(figure, selection)
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[-1] == "24 dropped"
    assert texts[0].split()[0] == str(found["anchor"])
    assert [texts[1], texts[2]] == [f"{found['buffer']} buffers", f"{found['register']} registers"]
    assert legend.get_title().get_text() == "24 of 48 tokens kept (50.0 %)"


def _overlapping(figure) -> list[tuple[str, str]]:
    """Pairs of texts that lie on each other, and texts that leave the figure."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # all is laid out
    texts = [
        text
        for text in figure.findobj(matplotlib.text.Text)
        if text.get_text() and text.get_visible()
    ]
    boxes = [text.get_window_extent() for text in texts]
    found = [
        (a.get_text(), b.get_text())
        for n, (a, one) in enumerate(zip(texts, boxes, strict=True))
        for b, other in zip(texts[:n], boxes[:n], strict=True)
        if one.overlaps(other)
    ]
    inside = figure.bbox.padded(1)
    for text, box in zip(texts, boxes, strict=True):
        if not (inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)):
            found.append((text.get_text(), "the figure's edge"))
    return found


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (50, 50), (200, 50)])
@pytest.mark.parametrize("views", [None, (1, 2), (2, 1), (2, 2), (3, 1), (1, 3)])
def test_no_text_lies_on_another(size, views):
    image = Image.new("RGB", size)
    if views is None:
        grids, count = [single_grid(4, 4, padded_box(size), "padded to a square")], 1
    else:
        grids, count = anyres_grids(size, views, side=30, columns=4), 1 + math.prod(views)
    maps = torch.rand(8, count, 16, generator=torch.Generator().manual_seed(1))
    selection = chosen(count, 4)
    for figure in (
        tokens_figure(image, maps, selection, grids, 3, 7, "HiPrune: retention 48, alpha 0.1"),
        selection_figure(image, selection, grids, "kept"),
        attention_figure(image, maps, grids),
    ):
        assert _overlapping(figure) == []


def test_panels_of_the_figures():
    grids = anyres_grids(SIZE, (1, 2), side=30, columns=4)
    maps = torch.rand(8, 3, 16, generator=torch.Generator().manual_seed(1))
    figure = attention_figure(GREY, maps, grids, smooth=True)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[:3] == [f"layer {n} of 8, base view" for n in (1, 4, 8)]
    assert len(titles) == 6
    figure = tokens_figure(GREY, maps, chosen(3, 4), grids, 3, 7, "all")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[1:4] == [
        "layer 3 of 8: chooses anchors",
        "layer 7 of 8: chooses registers",
        "base view: 8 of 16 kept",
    ]
    drawn = [axes.images[1].get_array() for axes in figure.axes if "layer 3" in axes.get_title()]
    assert [array.shape for array in drawn] == [(4, 4), (4, 8)]
    assert drawn[0].flatten().argmax() == maps[2, 0].argmax()


def test_refusals():
    grid = single_grid(5, 5, (0, 0, *SIZE))
    with pytest.raises(HiPruneError, match=r"\(1, 16\).*with 25 tokens"):
        paint_selection(Figure().subplots(), GREY, chosen(1, 4), grid)
    base, _ = anyres_grids(SIZE, (1, 2), side=30, columns=4)
    with pytest.raises(HiPruneError, match="with 48 tokens"):  # a view is missing
        paint_selection(Figure().subplots(), GREY, chosen(2, 4), base)
    with pytest.raises(HiPruneError, match="from 1 to 8"):
        attention_figure(GREY, torch.rand(8, 1, 25), [grid], layers=[0])


def test_colours_are_told_apart_also_in_grey():
    """In lightness the three kinds and the dimmed rest are steps apart."""
    lightness = sorted(
        np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour in COLOURS.values()
    )
    assert np.diff(lightness).min() > 0.04
    assert set(COLOURS.values()) == {"#D55E00", "#F0E442", "#0072B2"}
