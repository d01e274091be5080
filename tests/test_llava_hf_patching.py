"""apply and prune on transformers' LLaVA: no trace afterwards, and bad input is told."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="transformers' own LLaVA is newer")

from family import state
from llava_hf_models import (
    FAMILIES,
    LAYERS,
    TOKENS,
    config,
    forward,
    generate,
    inputs,
    load,
    one_thread,  # noqa: F401 - a fixture that all tests here use
)

import hiprune
from hiprune import HiPruneConfig, HiPruneError


@pytest.mark.parametrize("family", FAMILIES)
def test_remove_gives_back_the_very_same_model(family):
    model, arguments = load(family), inputs(family, [1])
    expected = forward(model, arguments).logits  # transformers' own hooks come with the first run
    before = state(model)
    handle = hiprune.apply(model, config(15))
    assert (handle.family, handle.config) == (family, config(15))
    assert state(model) != before
    generate(model, arguments)
    handle.remove()
    assert state(model) == before
    assert torch.equal(forward(model, arguments).logits, expected)
    handle.remove()  # once more does nothing
    assert state(model) == before
    assert len(handle.selections) == 1, "what was kept can still be looked at"


def test_an_exception_leaves_no_trace():
    model = load("llava")
    before = state(model)
    with pytest.raises(HiPruneError), hiprune.prune(model, config(15)):
        forward(model, {**inputs("llava", [1]), "pixel_values": [1]})
    assert state(model) == before


def test_attributes_that_the_instance_had_are_given_back(monkeypatch):
    model, calls = load("llava"), []
    own = model.forward
    monkeypatch.setattr(model, "forward", lambda **given: calls.append(given) or own(**given))
    mine = model.forward
    with hiprune.prune(model, config(15)):
        forward(model, inputs("llava", [1]))
        assert model.forward is not mine
    assert vars(model)["forward"] is mine
    assert calls[0]["inputs_embeds"].shape[1] == 15 + 8


def test_a_model_that_is_patched_already():
    model = load("llava")
    with hiprune.prune(model, config(15)):
        before = state(model)
        with pytest.raises(HiPruneError, match="already has HiPrune applied"):
            hiprune.apply(model, config(15))
        assert state(model) == before


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llava", {"retention": TOKENS + 1}, f"retention={TOKENS + 1}: expected 1 to {TOKENS}"),
        ("llava_next", {"retention": 4}, f"retention=4: expected 5 to {5 * TOKENS}"),
        ("llava_next", {"retention": 5 * TOKENS + 1}, f"expected 5 to {5 * TOKENS}"),
        ("llava", {"object_layer": 33}, f"object_layer=33: expected 1 to {LAYERS}"),
    ],
)
def test_what_this_model_cannot_have(family, settings, message):
    model = load(family)
    before = state(model)
    with pytest.raises(HiPruneError, match=message):
        hiprune.apply(model, HiPruneConfig(**{"retention": 12, "object_layer": 3, **settings}))
    assert state(model) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vision_feature_layer", [-2, -5]),
        ("vision_feature_select_strategy", "full"),
    ],
)
def test_features_that_are_taken_otherwise(monkeypatch, name, value):
    model = load("llava")
    with hiprune.prune(model, config(15)), pytest.raises(HiPruneError, match=f"{name}="):
        forward(model, inputs("llava", [1]), **{name: value})
    monkeypatch.setattr(model.config, name, value)
    with pytest.raises(HiPruneError, match=f"{name}="):
        hiprune.apply(model, config(15))


def test_a_vision_tower_of_another_kind(monkeypatch):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    model = load("llava")
    other = SiglipVisionModel(SiglipVisionConfig(hidden_size=24, num_hidden_layers=1))
    monkeypatch.setitem(model.model._modules, "vision_tower", other)
    with pytest.raises(HiPruneError, match="its vision tower is a SiglipVisionModel"):
        hiprune.apply(model, config(15))


@pytest.mark.parametrize("version", ["4.57.6", "5.16.2", "6.0.0"])
def test_versions_of_transformers_that_are_not_known(monkeypatch, version):
    monkeypatch.setattr("transformers.__version__", version)
    with pytest.raises(HiPruneError, match=rf"transformers.*{version}: expected 5\.17 to 5\.x"):
        hiprune.apply(load("llava"), config(15))


def bad(family: str, change) -> dict:
    arguments = inputs(family, [1, 2])
    change(arguments)
    return arguments


@pytest.mark.parametrize("run", [forward, generate])
@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llava", lambda a: a["input_ids"].clamp_(max=300), "input_ids: .0, 0. placeholders"),
        ("llava", lambda a: a.update(pixel_values=a["pixel_values"][:2]), "input_ids: .36, 72."),
        ("llava", lambda a: a["input_ids"][0].clamp_(max=300), "input_ids: .0, 72. placeholders"),
        ("llava", lambda a: a["input_ids"][1, -1:].fill_(319), "input_ids: .36, 73. placeholders"),
        ("llava", lambda a: a.update(pixel_values=[1]), "pixel_values: list; expected a tensor"),
        ("llava", lambda a: a.update(pixel_values=a["pixel_values"][None]), "pixel_values: shape"),
        ("llava_next", lambda a: a.update(image_sizes=None), "image_sizes=None"),
        ("llava_next", lambda a: a.update(pixel_values=a["pixel_values"][:2]), "as image_sizes"),
        ("llava_next", lambda a: a.update(pixel_values=a["pixel_values"][:, :4]), "as image_sizes"),
    ],
)
def test_images_and_placeholders_that_do_not_fit(run, family, change, message):
    model = load(family)
    with hiprune.prune(model, config(15)):
        with pytest.raises(HiPruneError, match=message):
            run(model, bad(family, change))
        run(model, inputs(family, [1, 2]))  # and the next is not harmed by it


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"logits_to_keep": torch.tensor([1])}, "logits_to_keep"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask: shape \(1, 3\)"),
        ({"input_ids": None, "inputs_embeds": torch.ones(1, 3, 32)}, "input_ids=None"),
        ({"pixel_values": None, "mm_encoder_outputs": {"image": 1}}, "mm_encoder_outputs"),
    ],
)
def test_arguments_of_forward_that_cannot_be_pruned(more, message):
    model = load("llava")
    with hiprune.prune(model, config(15)), pytest.raises(HiPruneError, match=message):
        forward(model, {**inputs("llava", [1]), **more})


@pytest.mark.parametrize("run", [forward, generate])
@pytest.mark.parametrize("family", FAMILIES)
def test_placeholders_without_pixels_run_as_they_are(run, family):
    model, arguments = load(family), inputs(family, [1, 2])
    del arguments["pixel_values"]
    expected = run(model, arguments)
    with hiprune.prune(model, config(15)) as pruned:
        with pytest.warns(UserWarning, match="placeholders without pixel_values"):
            found = run(model, arguments)
    assert pruned.selections == []
    assert torch.equal(getattr(found, "logits", found), getattr(expected, "logits", expected))


def test_a_scored_layer_that_does_not_run(monkeypatch):
    model = load("llava")
    layer = model.model.vision_tower.encoder.layers[2]

    class Bypass(torch.nn.Module):  # calls past __call__ are what hooks do not see
        def forward(self, **arguments):
            return attention.forward(**arguments)

    attention = layer.self_attn
    with hiprune.prune(model, config(15)):
        with monkeypatch.context() as patch:
            patch.setitem(layer._modules, "self_attn", Bypass())
            with pytest.raises(HiPruneError, match="layer 3: its attention ran 0 times"):
                generate(model, inputs("llava", [1]))
        generate(model, inputs("llava", [1]))


def test_a_share_that_leaves_a_view_nothing():
    model = load("llava_next")
    with hiprune.prune(model, HiPruneConfig(retention=0.01, object_layer=3)):
        with pytest.raises(HiPruneError, match=r"retention=0\.01: leaves no token"):
            forward(model, inputs("llava_next", [1]))


def test_the_features_of_others_stay_whole():
    model, arguments = load("llava"), inputs("llava", [1])
    with hiprune.prune(model, config(15)) as pruned, torch.inference_mode():
        features = model.get_image_features(arguments["pixel_values"]).pooler_output
        assert features[0].shape[0] == TOKENS
        assert pruned.selections == []
        output = model(**arguments)
    kept = getattr(output, "image_outputs", output)  # since transformers 5.23
    kept = kept.pooler_output[0] if kept is not output else output.image_hidden_states
    assert kept.shape[0] == 15


def test_training_reaches_the_projector():
    model, arguments = copy.deepcopy(load("llava")), inputs("llava", [1, 2])
    with hiprune.prune(model, config(15)):
        model(**arguments, labels=arguments["input_ids"]).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("offload", [True, False])
def test_hooks_of_accelerate(family, offload):
    """As device_map="auto" puts them, with weights that are elsewhere until a module runs."""
    accelerate = pytest.importorskip("accelerate")
    model, arguments = copy.deepcopy(load(family)), inputs(family, [1, 0, 2])
    with hiprune.prune(load(family), config(60 if family == "llava_next" else 12)):
        expected = generate(load(family), arguments)
    if offload:
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        places = {name: "cpu" for name, _ in model.model.named_children()}
        places = {f"model.{name}": place for name, place in places.items()} | {"lm_head": "cpu"}
        if family == "llava_next":
            places["model.image_newline"] = "cpu"
        accelerate.dispatch_model(model, places, main_device="cpu", force_hooks=True)
    before = state(model)
    with hiprune.prune(model, config(60 if family == "llava_next" else 12)):
        assert torch.equal(generate(model, arguments), expected)
    assert state(model).keys() == before.keys()
