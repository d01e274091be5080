"""flops.py: the paper's digits; fvcore against a closed form; rows and tables."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
import transformers
from closed_flops import closed_form
from PIL import Image
from torch import nn

from scripts.efficiency.architectures import ARCHITECTURES
from scripts.efficiency.flops.cli import Subject, read_settings
from scripts.efficiency.flops.conventions import CONVENTIONS, figures
from scripts.efficiency.flops.count import UncountedError, Work, count, one_of
from scripts.efficiency.flops.models import IMAGE_SIZE, picture_of
from scripts.efficiency.flops.models import counts_of as new_counts_of
from scripts.efficiency.flops.tables import introduction, paper_totals, rows_of, table

counts_of = cache(new_counts_of)  # the parts of a model are counted once for all tests

OWN_MODELS = int(transformers.__version__.split(".")[0]) >= 5  # transformers' own, Qwen among them
needs_own = pytest.mark.skipif(not OWN_MODELS, reason="models of transformers 5")
NAMES = [
    pytest.param(name, marks=needs_own if architecture.needs_own else ())
    for name, architecture in ARCHITECTURES.items()
]


def subject_of(name: str) -> Subject:
    architecture = ARCHITECTURES[name]
    return Subject(architecture, picture_of(architecture, IMAGE_SIZE), architecture.retentions)


def rows(name: str, convention: str, counter=closed_form, **changes):
    """By the closed form, which is quicker and, as tested below, the same."""
    subject = replace(subject_of(name), **changes)
    counts = counter(subject.architecture, subject.picture)
    return rows_of(subject, counts, convention, text_tokens=49, passes=2)


# What the paper and its literature print.


def test_paper_convention_gives_table_5_to_the_digit():
    found = [
        (row.visual_tokens, row.figures.total / 1e12)
        for row in rows("llava-1.5-7b", "paper", counter=counts_of)
    ]
    printed = [(576, "8.63"), (192, "3.56"), (128, "2.71"), (64, "1.87")]
    assert [(tokens, f"{total:.2f}") for tokens, total in found] == printed
    assert {tokens: float(text) for tokens, text in printed} == paper_totals(
        ARCHITECTURES["llava-1.5-7b"]
    )


@pytest.mark.parametrize(("name", "printed"), [("llava-1.5-7b", 3.82), ("llava-next-7b", 20.8)])
def test_fastv_convention_gives_the_literatures_figures(name, printed):
    total = rows(name, "fastv", counter=counts_of)[0].figures.total / 1e12
    assert float(f"{total:.3g}") == printed


# fvcore on transformers' modules equals the closed form, exactly: in both environments, whose
# attention is computed by different operators, the same figures.


@pytest.mark.parametrize("name", NAMES)
def test_fvcore_equals_the_closed_form(name):
    subject = subject_of(name)
    counts = counts_of(subject.architecture, subject.picture)
    closed = closed_form(subject.architecture, subject.picture)
    tokens = subject.picture.tokens
    assert counts.tower() == closed.tower()
    assert counts.scoring_pass() == closed.scoring_pass()
    assert counts.lm_head(7) == closed.lm_head(7)
    for visual in (subject.picture.views, *map(subject.kept, subject.retentions), tokens):
        assert counts.pruned_tower(visual) == closed.pruned_tower(visual)
        assert counts.projector(visual) == closed.projector(visual)
        assert counts.layers(visual) == closed.layers(visual)
    for convention in CONVENTIONS:
        for kept in (None, subject.kept(subject.retentions[0])):
            arguments = (convention, tokens, kept, 49)
            assert figures(counts, *arguments) == figures(closed, *arguments)


@needs_own
@pytest.mark.parametrize("size", [(28, 28), (420, 588), (1000, 300)])
def test_windows_of_any_image_size(size):
    architecture = ARCHITECTURES["qwen2.5-vl-3b"]
    picture = picture_of(architecture, size)
    counts, closed = counts_of(architecture, picture), closed_form(architecture, picture)
    assert counts.tower() == closed.tower()
    assert counts.pruned_tower(1) == closed.pruned_tower(1)
    assert counts.scoring_pass() == closed.scoring_pass()


@needs_own
@pytest.mark.parametrize("name", ["qwen2-vl-7b", "qwen2.5-vl-3b", "qwen3-vl-4b"])
@pytest.mark.parametrize("size", [(896, 896), (900, 610), (30, 20), (6000, 5000)])
def test_image_size_is_rounded_as_the_processor_does(size, name):
    from transformers.models.qwen2_vl import image_processing_qwen2_vl as qwen2_vl

    from scripts.efficiency.flops.models import PIXELS

    architecture = ARCHITECTURES[name]
    least, most = PIXELS[architecture.family]
    processor = qwen2_vl.Qwen2VLImageProcessor(
        min_pixels=least, max_pixels=most, patch_size=architecture.vision.patch
    )
    width, height = size
    picture = picture_of(architecture, size)
    assert picture.rows * picture.columns == processor.get_number_of_image_patches(height, width)
    assert picture.tokens == picture.rows * picture.columns // 4


@needs_own
@pytest.mark.parametrize(("name", "tokens"), [("internvl3-8b", 1280), ("llava-onevision-7b", 7290)])
def test_views_are_those_of_an_image_of_896_pixels(name, tokens):
    from scripts.efficiency.configs import own_config
    from scripts.efficiency.latency.inputs import views_processor

    architecture = ARCHITECTURES[name]
    processor = views_processor(architecture, own_config(architecture))
    pixels = processor(images=[Image.new("RGB", IMAGE_SIZE)], return_tensors="pt").pixel_values
    picture = picture_of(architecture, IMAGE_SIZE)
    assert pixels.flatten(0, -4).shape[0] == picture.views
    assert pixels.shape[-1] == architecture.vision.image_size
    assert picture.tokens == tokens


# Rows and tables.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_fewer_tokens_cost_less(name, convention):
    found = rows(name, convention)
    assert [row.retention for row in found] == ["unpruned", *ARCHITECTURES[name].retentions]
    assert found[0].reduction == 0
    for more, fewer in pairwise(found):
        assert fewer.visual_tokens < more.visual_tokens
        assert more.reduction < fewer.reduction < 100


def test_conventions_leave_out_what_they_say():
    _, paper = rows("llava-1.5-7b", "paper")[:2]
    _, fastv = rows("llava-1.5-7b", "fastv")[:2]
    base, executed = rows("llava-1.5-7b", "executed")[:2]
    assert paper.figures.scoring is None and paper.figures.vision > 0
    assert (fastv.figures.vision, fastv.figures.scoring, fastv.figures.projector) == (None,) * 3
    assert base.figures.scoring == 0 < executed.figures.scoring
    assert executed.figures.vision < base.figures.vision
    assert executed.figures.projector * 3 == base.figures.projector


def test_one_pass_of_scoring_costs_half():
    subject = subject_of("llava-1.5-7b")
    closed = closed_form(subject.architecture, subject.picture)
    two, one = (figures(closed, "executed", 576, 64, passes=passes) for passes in (2, 1))
    assert two.scoring == 2 * one.scoring == 2 * 2 * 2 * 577**2 * 1024


def test_views_share_a_budget():
    found = rows("llava-next-7b", "executed", retentions=(643, 0.1))
    assert [row.visual_tokens for row in found] == [2880, 640, 285]


def test_keeping_everything_costs_the_language_model_what_it_does_unpruned():
    base, full = rows("llava-1.5-7b", "executed", retentions=(576,))
    assert full.figures.llm == base.figures.llm


def test_table_states_unit_and_the_papers_column():
    settings = read_settings(["--model", "llava-1.5-7b"])
    text = table(settings.subjects[0], "paper", rows("llava-1.5-7b", "paper"))
    assert text.startswith("## llava-1.5-7b, convention paper: T FLOPs\n")
    assert "paper (Table 5)" in text and "| 8.632 |" in text and "8.63 |" in text
    other = table(subject_of("llava-1.5-13b"), "paper", rows("llava-1.5-13b", "paper"))
    assert "Table 5" not in other and "prints no FLOPs" in other
    fastv = table(settings.subjects[0], "fastv", rows("llava-1.5-7b", "fastv"))
    assert "T multiply-adds" in fastv and "Table 5" not in fastv
    head = introduction(settings, {"torch": "2"})
    assert "T = 1e12" in head and all(f"**{name}**" in head for name in CONVENTIONS)


# Counting fails rather than miss something.


class Products(nn.Module):
    def __init__(self, product):
        super().__init__()
        self.product = product

    def forward(self, x):
        return self.product(x)


@pytest.mark.parametrize(
    "product",
    [
        lambda x: torch.cdist(x, x),
        lambda x: torch.einsum("bij,bkj->bik", x, x),
        lambda x: torch.baddbmm(x @ x.mT, x, x.mT),
    ],
    ids=["cdist", "einsum", "baddbmm"],
)
def test_an_uncounted_product_is_an_error(product):
    with pytest.raises(UncountedError, match="expected"):
        count(Products(product), torch.zeros(1, 3, 4))


def test_units_are_multiply_adds():
    assert count(nn.Linear(3, 5), torch.zeros(2, 3)) == Work(weights=2 * 3 * 5)
    assert count(Products(lambda x: x @ x.mT), torch.zeros(1, 3, 4)) == Work(attention=3 * 3 * 4)


def test_layers_that_differ_are_not_multiplied():
    with pytest.raises(ValueError, match="different shapes"):
        one_of([nn.Linear(2, 2), nn.Linear(2, 3)])
