"""Qwen2.5-VL with HiPrune: no trace afterwards, and every way to misuse it."""

from __future__ import annotations

import sys

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="needs the environment .venv-qwen")

from family import state
from qwen_models import BLOCKS, IMAGE, inputs, load

import hiprune
from hiprune import HiPruneConfig, HiPruneError

SMALL = HiPruneConfig(retention=0.334, object_layer=4)


@pytest.fixture
def model():
    return load("sdpa")


def test_remove_gives_back_the_very_same_model(model):
    before = state(model)
    with hiprune.prune(model, SMALL):
        assert state(model) != before
    assert state(model) == before
    with pytest.raises(RuntimeError, match="inside"), hiprune.prune(model, SMALL):
        raise RuntimeError("inside")
    assert state(model) == before


def test_defaults_come_from_the_variables(monkeypatch):
    model = load("sdpa")
    monkeypatch.setenv("HIPRUNE_QWEN_RETENTION", "0.5")
    monkeypatch.setenv("HIPRUNE_OBJECT_LAYER", "2")
    with hiprune.prune(model) as pruned:
        assert pruned.config == HiPruneConfig(retention=0.5, alpha=0.1, object_layer=2)
        assert pruned.family == "qwen2_5_vl"


def test_a_second_patch_is_refused(model):
    with hiprune.prune(model, SMALL), pytest.raises(HiPruneError, match="already has HiPrune"):
        hiprune.apply(model, SMALL)


def test_an_object_layer_that_the_tower_does_not_have(model):
    before = state(model)
    with pytest.raises(HiPruneError, match=f"object_layer={BLOCKS + 1}: expected 1 to {BLOCKS}"):
        hiprune.apply(model, HiPruneConfig(object_layer=BLOCKS + 1))
    assert state(model) == before


@pytest.mark.parametrize("version", ["5.16.2", "4.57.6", "6.0.0"])
def test_another_version_of_transformers(model, monkeypatch, version):
    # transformers puts another module object in its place as it loads: take the one of today.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    with pytest.raises(HiPruneError, match=rf"transformers {version}: expected 5\.17 to 5\.x"):
        hiprune.apply(model, SMALL)


def test_pixels_without_placeholders(model):
    arguments = inputs([1])
    arguments["input_ids"][arguments["input_ids"] == IMAGE] = 7
    with hiprune.prune(model, SMALL):
        for call in (model, model.generate):
            with pytest.raises(
                HiPruneError, match=r"input_ids: \[0\] placeholders in the prompts; expected"
            ):
                call(**arguments)


def test_pixels_without_ids(model):
    arguments = inputs([1])
    embeds = model.get_input_embeddings()(arguments.pop("input_ids"))
    with hiprune.prune(model, SMALL), pytest.raises(HiPruneError, match="input_ids=None with pix"):
        model(inputs_embeds=embeds, **arguments)


def test_features_computed_elsewhere(model):
    arguments = inputs([1])
    found = model.get_image_features(arguments.pop("pixel_values"), arguments["image_grid_thw"])
    with hiprune.prune(model, SMALL), pytest.raises(HiPruneError, match="mm_encoder_outputs: "):
        model(**arguments, mm_encoder_outputs={"image": found})


def test_a_cache_of_an_earlier_turn(model):
    arguments = inputs([1])
    with hiprune.prune(model, SMALL):
        cache = model(**arguments, use_cache=True).past_key_values
        text = {name: arguments[name] for name in ("input_ids", "attention_mask")}
        for call, asked, message in (
            (model.generate, arguments, "the cache of a pruned prompt"),
            (model, arguments, r"\d+ positions of an earlier turn before a prompt with images"),
            (model.generate, text, "the cache of a pruned prompt"),
        ):
            with pytest.raises(HiPruneError, match=f"past_key_values: {message}"):
                call(**asked, past_key_values=cache)
        plain = {"input_ids": torch.tensor([[5, 6, 7]])}
        cache = model(**plain, use_cache=True).past_key_values  # of text alone: the model's own
        longer = torch.tensor([[5, 6, 7, 8]])
        assert model.generate(longer, past_key_values=cache, max_new_tokens=1).shape == (1, 5)


def test_pixels_without_a_grid(model):
    arguments = {**inputs([1]), "image_grid_thw": None}
    with hiprune.prune(model, SMALL), pytest.raises(HiPruneError, match="image_grid_thw=None with"):
        model(**arguments)


def test_logits_by_positions(model):
    with hiprune.prune(model, SMALL), pytest.raises(HiPruneError, match="logits_to_keep: a tensor"):
        model(**inputs([1]), logits_to_keep=torch.tensor([3]))


class Bypass(torch.nn.Module):
    """Calls past __call__ are what hooks do not see."""

    def __init__(self, attention, times):
        super().__init__()
        self.call, self.times = [attention], times  # in a list: no submodule

    def forward(self, *args, **kwargs):
        for _ in range(self.times):
            out = self.call[0](*args, **kwargs)
        return out if self.times else self.call[0].forward(*args, **kwargs)


@pytest.mark.parametrize("times", [0, 2])
def test_a_scored_layer_that_does_not_run_once(model, monkeypatch, times):
    block = model.model.visual.blocks[3]
    with hiprune.prune(model, SMALL):
        with monkeypatch.context() as patch:
            patch.setitem(block._modules, "attn", Bypass(block.attn, times))
            with pytest.raises(HiPruneError, match=f"layer 4: its attention ran {times} times"):
                model(**inputs([1]))
        model(**inputs([1]))  # and the next pass is not harmed by it
