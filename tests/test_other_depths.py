"""`hiprune.apply(model)`, nothing set, on models of other sizes than the paper's."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

import hiprune
from hiprune import HiPruneConfig
from hiprune.config import FAMILIES
from scripts.benchmarks import ASSETS, BENCHMARKS

PACKAGE = find_spec("llava") is not None
of_transformers = pytest.mark.skipif(PACKAGE, reason="needs transformers 5.17 or newer")


@of_transformers
@pytest.mark.parametrize(("family", "retention"), [("llava", 12), ("llava_next", 40)])
def test_llava_of_transformers(family, retention):
    from llava_hf_models import LAYERS, forward, inputs, load

    model, arguments = load(family), inputs(family, [1, 2])
    with hiprune.prune(model) as pruned:
        forward(model, arguments)
    assert pruned.config == HiPruneConfig(retention, 0.1, object_layer=round(9 / 24 * LAYERS))
    for selection in pruned.selections:
        views = len(selection.indices)
        assert selection.indices.numel() == retention // views * views


@of_transformers
def test_qwen():
    import torch
    from qwen_models import BLOCKS, inputs, load

    with torch.no_grad(), hiprune.prune(load()) as pruned:
        load()(**inputs([1, 2]))
    assert pruned.config == HiPruneConfig(0.334, 0.1, object_layer=BLOCKS // 2)
    assert all(s.register.any() for s in pruned.selections)


@pytest.mark.skipif(not PACKAGE, reason="needs the llava package")
def test_the_llava_package(tiny_llava, tiny_llava_next):
    from llava_models import inputs, load

    for checkpoint, retention in ((tiny_llava, 12), (tiny_llava_next, 40)):
        model, processor = load(checkpoint)
        with hiprune.prune(model) as pruned:
            model(**inputs(model, processor, [1]))
        assert pruned.config == HiPruneConfig(retention, 0.1, object_layer=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_told_and_not_as_the_papers(family, caplog):
    """The paper has no numbers of most families."""
    hiprune.config._say_once.cache_clear()
    found = HiPruneConfig().resolve(family, layers=96, tokens=7)
    layer = [line for line in caplog.messages if line.startswith("object_layer=")]
    assert len(layer) == 1 and f"as deep as {FAMILIES[family].object_layer} of" in layer[0]
    assert len(caplog.messages) == (2 if isinstance(found.retention, int) else 1)
    assert not any("paper" in line for line in caplog.messages)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_small_models_object_layers_are_the_defaults(name):
    benchmark = BENCHMARKS[name]
    vision = json.loads((ASSETS / benchmark.tiny.asset / "config.json").read_text())[
        "vision_config"
    ]
    layers = vision.get("num_hidden_layers") or vision["depth"]
    assert benchmark.tiny.object_layer == FAMILIES[benchmark.family].layer_of(layers)
