"""Scores of every layer of every encoder, beside the whole attention maps in float64."""

from __future__ import annotations

import copy

import encoder_models as encoders
import pytest
import torch
import transformers
from encoder_models import hooks

from hiprune import HiPruneError
from hiprune.figures.maps import extra_tokens, maps_and_features, received_attention_maps

NAMES = [name for name in encoders.EXTRA if hasattr(transformers, name)]
V5 = int(transformers.__version__.split(".")[0]) >= 5
ATTENTIONS = ["eager", "sdpa"] if V5 else ["eager"]
new_only = pytest.mark.skipif(not V5, reason="encoders of transformers 5")


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_scores_what_its_whole_map_gives(name, attention):
    model, arguments = encoders.load(name, attention), encoders.inputs(name)
    before = hooks(model)
    maps, features = maps_and_features(model, **arguments)
    expected, expected_features = encoders.by_hand(name, arguments)
    tokens = 12 if name == "Siglip2VisionModel" else encoders.SIDE**2
    assert maps.shape == (encoders.LAYERS, 2, tokens)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, expected.float(), rtol=1e-4, atol=1e-6)
    there = arguments.get("pixel_attention_mask", torch.ones(2, tokens)).bool()
    torch.testing.assert_close(
        features[there], expected_features[there].float(), rtol=1e-3, atol=1e-4
    )
    assert extra_tokens(model) == encoders.EXTRA[name]
    assert hooks(model) == before


@pytest.mark.parametrize("name", NAMES)
def test_maps_differ_between_tokens_and_layers(name):
    """Else the comparison above would say little."""
    maps = received_attention_maps(encoders.load(name), **encoders.inputs(name, 1))[:, 0]
    assert (maps.std(dim=1) > 0.1 * maps.mean(dim=1)).all()
    assert not torch.allclose(maps[0], maps[-1], rtol=0.1)


@new_only
def test_extra_tokens_ask_but_are_not_listed():
    """With E extra keys a layer's scores sum to less than 1; without them to 1."""
    registers, siglip = "Dinov2WithRegistersModel", "SiglipVisionModel"
    sums = received_attention_maps(encoders.load(registers), **encoders.inputs(registers)).sum(-1)
    assert (sums < 0.99).all()
    sums = received_attention_maps(encoders.load(siglip), **encoders.inputs(siglip)).sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


@new_only
def test_padding_scores_nothing_and_changes_nothing():
    name = "Siglip2VisionModel"
    model, arguments = encoders.load(name), encoders.inputs(name)
    maps = received_attention_maps(model, **arguments)
    assert (maps[:, 1, 8:] == 0).all()
    alone = {key: value[1:2] for key, value in arguments.items()}
    alone["pixel_values"] = alone["pixel_values"][:, :8]
    alone["pixel_attention_mask"] = alone["pixel_attention_mask"][:, :8]
    found = received_attention_maps(model, **alone)
    torch.testing.assert_close(found[:, 0], maps[:, 1, :8], rtol=1e-4, atol=1e-6)


def test_other_resolutions_and_a_classifier():
    name = "ViTModel"
    pixels = torch.randn(1, 3, 42, 70, generator=torch.Generator().manual_seed(1))
    more = {"interpolate_pos_encoding": True}
    maps = received_attention_maps(encoders.load(name), pixels, **more)
    expected, _ = encoders.by_hand(name, {"pixel_values": pixels, **_as_tensors(more)})
    assert maps.shape == (encoders.LAYERS, 1, 3 * 5)
    torch.testing.assert_close(maps, expected.float(), rtol=1e-4, atol=1e-6)

    config = encoders.load(name).config
    classifier = transformers.ViTForImageClassification(config).eval()
    arguments = encoders.inputs(name)
    found = received_attention_maps(classifier, **arguments)
    assert torch.equal(found, received_attention_maps(classifier.vit, **arguments))


def _as_tensors(settings: dict) -> dict:
    return {key: torch.tensor(value) for key, value in settings.items()}


def test_half_precision():
    name = "CLIPVisionModel"
    arguments = encoders.inputs(name)
    half = copy.deepcopy(encoders.load(name)).bfloat16()
    found = received_attention_maps(half, arguments["pixel_values"].bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, encoders.by_hand(name, arguments)[0].float(), rtol=0.2, atol=2e-3
    )


@new_only
def test_no_map_is_ever_held(monkeypatch):
    """Long queries go block by block: nothing of N x N is made, in any layer."""
    name = "SiglipVisionModel"
    model = encoders.load(name, "sdpa")
    pixels = torch.randn(1, 3, PIXELS := 14 * 24, PIXELS)
    biggest = 0
    softmax = torch.Tensor.softmax

    def watch(tensor, *args, **kwargs):
        nonlocal biggest
        biggest = max(biggest, tensor.numel())
        return softmax(tensor, *args, **kwargs)

    import hiprune.scores

    monkeypatch.setattr(hiprune.scores, "BLOCK_ELEMENTS", 24**2 * 8)
    monkeypatch.setattr(torch.Tensor, "softmax", watch)
    maps = received_attention_maps(model, pixels, interpolate_pos_encoding=True)
    assert maps.shape == (encoders.LAYERS, 1, 24**2)
    assert 0 < biggest <= 24**2 * 8


def test_an_exception_leaves_no_hook():
    name = "CLIPVisionModel"
    model = encoders.load(name)
    before = hooks(model)
    with pytest.raises((ValueError, RuntimeError)):
        received_attention_maps(model, torch.zeros(1, 3, 28, 28))
    assert hooks(model) == before


@pytest.mark.parametrize(
    "config",
    [
        transformers.ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4),
        transformers.BeitConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1),
    ],
)
def test_other_encoders_are_refused(config):
    model = transformers.AutoModel.from_config(config)
    with pytest.raises(HiPruneError, match=rf"{config.model_type}.*expected.*siglip2.*dinov2"):
        received_attention_maps(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(HiPruneError, match="Linear"):
        received_attention_maps(torch.nn.Linear(2, 2), torch.zeros(1, 2))


@new_only
def test_a_backbone_without_features_is_refused():
    config = transformers.Dinov2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=28, mlp_ratio=1
    )
    backbone = transformers.Dinov2Backbone(config).eval()
    backbone(torch.zeros(1, 3, 28, 28))  # transformers puts hooks of its own on it
    before = hooks(backbone)
    with pytest.raises(HiPruneError, match="last_hidden_state"):
        received_attention_maps(backbone, torch.zeros(1, 3, 28, 28))
    assert hooks(backbone) == before
