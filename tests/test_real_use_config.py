"""Configurations as people write them: numpy's numbers, one, and towers of another depth."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from family import forward, state
from matrix import FAMILIES, PACKAGE, over_families

import hiprune
from hiprune import HiPruneConfig, HiPruneError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"retention": np.int64(12)}, {"retention": 12}),
        ({"retention": np.float32(0.5)}, {"retention": 0.5}),
        ({"retention": 7, "alpha": np.float64(0.25)}, {"retention": 7, "alpha": 0.25}),
        ({"retention": 7, "object_layer": np.int32(3)}, {"retention": 7, "object_layer": 3}),
        ({"retention": 7, "alpha": np.int16(1)}, {"retention": 7, "alpha": 1}),
    ],
)
def test_numbers_of_numpy(given, expected):
    found, plain = HiPruneConfig(**given), HiPruneConfig(**expected)
    assert found == plain
    assert found.budget(100) == plain.budget(100)
    assert type(found.budget(100)) is int


@pytest.mark.parametrize("value", [np.int64(0), np.float32(1.5), np.bool_(True), np.nan])
def test_numbers_of_numpy_that_are_no_budget(value):
    with pytest.raises(HiPruneError, match="retention="):
        HiPruneConfig(retention=value)


@over_families
def test_numbers_of_numpy_on_a_model(family):
    model = family.model()
    number = np.float64(family.third) if isinstance(family.third, float) else np.int64(family.third)
    arguments = family.inputs(model, [1])
    kept = []
    for retention in (family.third, number):
        with hiprune.prune(model, family.config(retention)) as pruned:
            forward(model, arguments)
        kept.append([selection.indices for selection in pruned.selections])
    torch.testing.assert_close(*kept)


@over_families
def test_more_tokens_than_the_largest_image_has(family):
    """Refused when HiPrune is applied; a model of images of any size keeps all of them."""
    model = family.model()
    if family.most is None:
        arguments = family.inputs(model, [1])
        with hiprune.prune(model, family.config(10**6)) as pruned:
            forward(model, arguments)
        assert pruned.selections[0].keep.all()
        return
    hiprune.apply(model, family.config(family.most)).remove()
    before = state(model)
    message = rf"^retention={family.most + 1}: expected \d+ to {family.most} tokens per image"
    with pytest.raises(HiPruneError, match=message):
        hiprune.apply(model, family.config(family.most + 1))
    assert state(model) == before


def test_one_is_a_token_in_python_and_all_in_qwens_variable():
    """Both stay, and the configuration says so."""
    assert HiPruneConfig(retention=1).budget(100) == 1
    assert HiPruneConfig(retention=1.0).budget(100) == 100
    qwen = HiPruneConfig.from_env("qwen2_5_vl", {"HIPRUNE_QWEN_RETENTION": "1"})
    assert qwen.budget(100) == 100
    llava = HiPruneConfig.from_env("llava", {"HIPRUNE_RETENTION": "1"})
    assert llava.budget(100) == 1
    assert "HIPRUNE_QWEN_RETENTION" in HiPruneConfig.__doc__


@over_families
def test_the_default_object_layer_scales_with_the_tower(family):
    """9 of 24 layers, 16 of 32."""
    model = family.model()
    share = family.depth[0] / family.depth[1]
    with hiprune.prune(model, HiPruneConfig(retention=family.third)) as pruned:
        forward(model, family.inputs(model, [1]))
    assert pruned.config.object_layer == round(share * len(family.layers(model)))
    assert pruned.selections


@pytest.mark.skipif(PACKAGE, reason="the models of transformers")
@pytest.mark.parametrize(("name", "depth", "layer"), [("llava", 13, 5), ("qwen2_5_vl", 14, 7)])
def test_a_layer_that_was_scaled_is_told(name, depth, layer, caplog):
    """A warning or a line in the log; of a depth that no other test has, as it may come once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with hiprune.prune(deep(name, depth), HiPruneConfig(retention=0.5)) as pruned:
            assert pruned.config.object_layer == layer
    told = [str(w.message) for w in caught] + [r.getMessage() for r in caplog.records]
    assert any("object_layer" in line or "object layer" in line for line in told), told


@over_families
def test_the_one_liner_from_the_variables(family, monkeypatch):
    """The budget given, the layer not: as above. A layer given is never moved."""
    model = family.model()
    depth = len(family.layers(model))
    share = family.depth[0] / family.depth[1]
    monkeypatch.setenv(family.variable, str(family.third))
    with hiprune.prune(model) as pruned:
        assert pruned.config.object_layer == round(share * depth)
    monkeypatch.setenv("HIPRUNE_OBJECT_LAYER", str(depth + 1))
    with pytest.raises(HiPruneError, match=f"object_layer={depth + 1}|HIPRUNE_OBJECT_LAYER"):
        hiprune.apply(model)
    with pytest.raises(HiPruneError, match=f"object_layer={depth + 3}"):
        hiprune.apply(model, HiPruneConfig(retention=family.third, object_layer=depth + 3))


@pytest.mark.skipif(PACKAGE, reason="the models of transformers")
@pytest.mark.parametrize(("name", "depth", "layer"), [("llava", 24, 9), ("qwen2_5_vl", 32, 16)])
def test_the_default_on_the_papers_depths(name, depth, layer):
    """Exact, and nothing is told."""
    family = FAMILIES[name]
    model = deep(name, depth)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with hiprune.prune(model, HiPruneConfig(retention=0.5)) as pruned:
            assert pruned.config.object_layer == layer
    assert len(family.layers(model)) == depth


def deep(name, depth):
    import transformers

    model = FAMILIES[name].make()
    config = type(model.config)(**model.config.to_dict())
    if name == "qwen2_5_vl":
        config.vision_config.depth = depth
    else:
        config.vision_config.num_hidden_layers = depth
    return getattr(transformers, type(model).__name__)(config).eval()
