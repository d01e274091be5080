"""The simpler methods and the ablations on models: the same budget and patch, another choice."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

import hiprune
from hiprune import HiPruneConfig, HiPruneError, select_tokens

VARIANTS = [
    {"method": "random", "seed": 4},
    {"method": "uniform"},
    {"buffer": "square", "neighborhood": "grid"},
    {"registers": False},
]
WITH_CLS = [*VARIANTS, {"method": "cls"}, {"score": "cls"}]

pytestmark = pytest.mark.skipif(
    find_spec("llava") is not None, reason="needs transformers 5.17 or newer"
)


def encode(model, fields, retention, *arguments):
    config = HiPruneConfig(retention, alpha=0.5, **fields)
    with hiprune.prune(model, config) as pruned:
        return pruned.encode_images(*arguments), pruned.selections


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("fields", WITH_CLS, ids=str)
def test_llava_keeps_its_budget(family, fields):
    from llava_hf_models import inputs, load

    model, arguments = load(family), inputs(family, [2])
    pixels, sizes = arguments["pixel_values"], arguments.get("image_sizes")
    fields = {"object_layer": 3, **fields}
    features, selections = encode(model, fields, 15, pixels, sizes)
    assert [len(image) for image in features] == [15, 15]
    again, _ = encode(model, fields, 15, pixels, sizes)
    assert all(torch.equal(*pair) for pair in zip(features, again, strict=True))
    for selection in selections:
        assert torch.equal(selection.keep, selection.anchor | selection.buffer | selection.register)


@pytest.mark.parametrize("fields", [{"method": "cls"}, {"score": "cls"}], ids=str)
def test_cls_scores_are_of_its_row_of_the_map(fields):
    from llava_hf_models import LAYERS, OUTPUT_LAYER, TOKENS, inputs, load

    assert LAYERS > OUTPUT_LAYER
    model, arguments = load("llava"), inputs("llava", [2])
    pixels = arguments["pixel_values"]
    with torch.no_grad():
        maps = model.model.vision_tower(pixels, output_attentions=True).attentions
    rows = [maps[layer - 1].mean(dim=1)[:, 0, 1:] for layer in (3, OUTPUT_LAYER)]
    alpha = 0.5 if "score" in fields else 0.0  # "cls": registers alone
    expected = select_tokens(*rows, columns=int(TOKENS**0.5), budget=15, alpha=alpha)
    _, selections = encode(model, {"object_layer": 3, **fields}, 15, pixels)
    for number, selection in enumerate(selections):
        assert torch.equal(selection.indices[0], expected.indices[number])


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_qwen_keeps_its_budget(fields):
    from qwen_models import inputs, load

    model, arguments = load(), inputs([2])
    pixels, grid = arguments["pixel_values"], arguments["image_grid_thw"]
    features, selections = encode(model, {"object_layer": 4, **fields}, 0.3, pixels, grid)
    for image, selection in zip(features, selections, strict=True):
        assert len(image) == round(0.3 * selection.keep.shape[1]) == selection.keep.sum()


@pytest.mark.parametrize("field", ["method", "score"])
def test_qwen_has_no_cls(field):
    from qwen_models import load

    with pytest.raises(HiPruneError, match=f"^{field}='cls': this model's vision tower has no CLS"):
        hiprune.apply(load(), HiPruneConfig(0.3, object_layer=4, **{field: "cls"}))
