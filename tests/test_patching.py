"""apply and prune: no trace afterwards, and every way to misuse them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("llava", reason="the llava package lives in .venv-llava alone")

from family import state
from llava_models import LAYERS, TOKENS, inputs, load

import hiprune
from hiprune import HiPruneConfig, HiPruneError
from hiprune.handle import STATE

SMALL = HiPruneConfig(retention=12, object_layer=3)


@pytest.fixture
def model(tiny_llava):
    return load(tiny_llava)[0]


@pytest.fixture
def arguments(tiny_llava):
    return inputs(*load(tiny_llava), [1])


def test_remove_gives_back_the_very_same_model(model, arguments):
    before = state(model)
    handle = hiprune.apply(model, SMALL)
    assert state(model) != before
    model(**arguments)
    handle.remove()
    assert state(model) == before
    handle.remove()  # once more does nothing
    assert state(model) == before
    assert len(handle.selections) == 1, "what was kept can still be looked at"


def test_an_exception_leaves_no_trace(model):
    before = state(model)
    with pytest.raises(RuntimeError, match="inside"), hiprune.prune(model, SMALL):
        raise RuntimeError("inside")
    assert state(model) == before


def test_an_attribute_that_the_instance_had_is_given_back(model, monkeypatch):
    own = lambda images: "the user's own"  # noqa: E731
    monkeypatch.setattr(model, "encode_images", own)
    with hiprune.prune(model, SMALL):
        assert model.encode_images is not own
    assert vars(model)["encode_images"] is own


def test_two_models_do_not_share_a_patch(tiny_llava, tiny_llava_next):
    first, second = load(tiny_llava)[0], load(tiny_llava_next)[0]
    with hiprune.prune(first, SMALL):
        assert STATE in vars(first)
        assert STATE not in vars(second)


def test_the_configuration_comes_from_the_variables(model, monkeypatch):
    monkeypatch.setenv("HIPRUNE_RETENTION", "7")
    monkeypatch.setenv("HIPRUNE_OBJECT_LAYER", "2")
    with hiprune.prune(model) as pruned:
        assert pruned.config == HiPruneConfig(retention=7, alpha=0.1, object_layer=2)
    monkeypatch.setenv("HIPRUNE_RETENTION", "abc")
    with pytest.raises(HiPruneError, match="HIPRUNE_RETENTION='abc'"):
        hiprune.apply(model)


def test_a_second_patch_is_refused(model):
    with hiprune.prune(model, SMALL):
        before = state(model)
        with pytest.raises(HiPruneError, match="already has HiPrune applied"):
            hiprune.apply(model, SMALL)
        assert state(model) == before


@pytest.mark.parametrize("other", [torch.nn.Linear(2, 2), None, "liuhaotian/llava-v1.5-7b"])
def test_a_model_of_another_family(other):
    with pytest.raises(HiPruneError, match=r"^model: .*expected an .*LlavaMetaForCausalLM"):
        hiprune.apply(other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retention": TOKENS + 1}, f"retention={TOKENS + 1}: expected 1 to {TOKENS}"),
        ({"object_layer": LAYERS + 1}, f"object_layer={LAYERS + 1}: expected 1 to {LAYERS}"),
    ],
)
def test_what_this_model_cannot_have(model, settings, message):
    before = state(model)
    with pytest.raises(HiPruneError, match=message):
        hiprune.apply(model, HiPruneConfig(**{"retention": 12, "object_layer": 3, **settings}))
    assert state(model) == before


@pytest.mark.parametrize("retention", [4, 5 * TOKENS + 1])
def test_a_budget_that_the_views_cannot_have(tiny_llava_next, retention):
    model, _ = load(tiny_llava_next)
    with pytest.raises(HiPruneError, match=f"retention={retention}: expected 5 to {5 * TOKENS}"):
        hiprune.apply(model, HiPruneConfig(retention=retention, object_layer=3))


def test_a_share_that_leaves_a_view_nothing(tiny_llava_next):
    model, processor = load(tiny_llava_next)
    with hiprune.prune(model, HiPruneConfig(retention=0.01, object_layer=3)):
        with pytest.raises(HiPruneError, match=r"retention=0\.01: leaves no token"):
            model(**inputs(model, processor, [1]))


def test_image_sizes_are_asked_for(tiny_llava_next):
    model, processor = load(tiny_llava_next)
    arguments = {**inputs(model, processor, [1]), "image_sizes": None}
    with hiprune.prune(model, HiPruneConfig(retention=60, object_layer=3)):
        with pytest.raises(HiPruneError, match="image_sizes=None"):
            model(**arguments)


def scored_attention(model):
    return model.get_vision_tower().vision_tower.vision_model.encoder.layers[2].self_attn


def test_a_scored_layer_that_does_not_run_is_an_error(model, arguments, monkeypatch):
    with hiprune.prune(model, SMALL):
        with monkeypatch.context() as patch:
            # Calls past __call__ are what hooks do not see.
            attention = scored_attention(model)
            layer = model.get_vision_tower().vision_tower.vision_model.encoder.layers[2]
            patch.setitem(layer._modules, "self_attn", Bypass(attention))
            with pytest.raises(HiPruneError, match="layer 3: its attention ran 0 times"):
                model(**arguments)
        model(**arguments)  # and the next pass is not harmed by it


def test_a_scored_layer_that_runs_twice_is_an_error(model, arguments, monkeypatch):
    with hiprune.prune(model, SMALL):
        layer = model.get_vision_tower().vision_tower.vision_model.encoder.layers[2]
        monkeypatch.setitem(layer._modules, "self_attn", Twice(scored_attention(model)))
        with pytest.raises(HiPruneError, match="layer 3: its attention ran 2 times"):
            model(**arguments)


def test_an_attention_that_does_not_call_its_projections_is_an_error(model, arguments, monkeypatch):
    attention = scored_attention(model)
    monkeypatch.setattr(attention, "forward", lambda hidden_states, **_: (hidden_states, None))
    with hiprune.prune(model, SMALL):
        with pytest.raises(HiPruneError, match="layer 3: its CLIPAttention ran without calling"):
            model(**arguments)


class Bypass(torch.nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.call = [attention]  # in a list: no submodule

    def forward(self, **arguments):
        return self.call[0].forward(**arguments)


class Twice(Bypass):
    def forward(self, **arguments):
        self.call[0](**arguments)
        return self.call[0](**arguments)


def test_the_tower_on_its_own_is_left_alone(model, arguments):
    tower = model.get_vision_tower()
    expected = tower(arguments["images"])
    with hiprune.prune(model, SMALL) as pruned:
        assert torch.equal(tower(arguments["images"]), expected)
        assert pruned.selections == []
