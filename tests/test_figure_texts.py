"""Figures' texts: counts, captions, legends and titles, none on another."""

from __future__ import annotations

import math

import pytest
import torch
from figure_cases import GREY, SIZE, chosen
from PIL import Image

from hiprune.figures import (
    add_legend,
    attention_figure,
    caption,
    counts,
    selection_figure,
    tokens_figure,
)
from hiprune.figures.token_grids import anyres_grids, padded_box, single_grid

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import AxesImage  # noqa: E402


def test_counts_captions_and_legend():
    base, views = anyres_grids(SIZE, (1, 2), side=30, columns=4)
    selection = chosen(3, 4)
    found = counts(selection)
    assert found["anchor"] == int(selection.anchor.sum()) > 0
    assert sum(found.values()) == 48
    assert found["dropped"] == 24
    assert caption(selection, base) == "base view: 8 of 16 kept"
    assert caption(selection, views) == "grid of 1 x 2 views: 16 of 32 kept"
    figure = Figure(figsize=(9, 4), layout="constrained")
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
    for picture in figure.findobj(AxesImage):  # the texts lie where they lie with them
        picture.set_visible(False)
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


WIDE, TALL, SQUARE, LONG = (60, 40), (40, 60), (50, 50), (200, 50)


@pytest.mark.parametrize(
    ("size", "views"),
    [
        *((size, None) for size in (WIDE, TALL, SQUARE, LONG)),
        *((size, views) for size in (SQUARE, LONG) for views in ((1, 2), (2, 2), (3, 1))),
        *((size, views) for size in (WIDE, TALL) for views in ((2, 1), (1, 3))),
    ],
)
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
    assert titles[:4] == [
        "input, base view",
        "base view: 8 of 16 kept",
        "layer 3 of 8:\nchooses anchors",
        "layer 7 of 8:\nchooses registers",
    ]
    drawn = [axes.images[1].get_array() for axes in figure.axes if "layer 3" in axes.get_title()]
    assert [array.shape for array in drawn] == [(4, 4), (4, 8)]
    assert drawn[0].flatten().argmax() == maps[2, 0].argmax()


def test_a_question_and_its_answers():
    """Each below its picture, in lines that are no formulas, with how many tokens gave it."""
    grids = anyres_grids(SIZE, (1, 2), side=30, columns=4)
    maps = torch.rand(8, 3, 16, generator=torch.Generator().manual_seed(1))
    answers = ("It is $5, or $" + " and more" * 20, "")
    figure = tokens_figure(GREY, maps, chosen(3, 4), grids, 3, 7, "all", "What $? " * 30, answers)
    assert _overlapping(figure) == []
    left, right = (axes.get_xlabel().split("\n") for axes in figure.axes if axes.get_xlabel())
    assert (left[0], right) == ("all 48 tokens answer", ["24 tokens answer", "nothing"])
    assert " ".join(left[1:]) == answers[0]
    assert figure.get_suptitle().endswith("\nall")
