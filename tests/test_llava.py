"""The `llava` package with HiPrune: the matrix of family x attention x batch x images x cache."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("llava", reason="the llava package lives in .venv-llava alone")

from llava_models import (
    ALPHA,
    LAYERS,
    OBJECT_LAYER,
    OUTPUT_LAYER,
    TOKENS,
    embeddings_by_hand,
    features_by_hand,
    inputs,
    load,
)
from transformers import LlamaForCausalLM

import hiprune
from hiprune import HiPruneConfig

FAMILIES = {"llava": TOKENS, "llava_next": 5 * TOKENS}  # -> the most tokens of an image
BATCHES = {
    "1 x 0": [0], "1 x 1": [1], "1 x 2": [2],
    "3 x 0": [0, 0, 0], "3 x 1": [1, 1, 1], "3 x 2": [2, 2, 2], "mixed": [1, 0, 2],
}  # fmt: skip
matrix = [
    pytest.mark.parametrize("family", FAMILIES),
    pytest.mark.parametrize("attention", ["eager", "sdpa"]),
    pytest.mark.parametrize("batch", BATCHES),
]


def over_matrix(test):
    for mark in matrix:
        test = mark(test)
    return test


@pytest.fixture
def models(tiny_llava, tiny_llava_next):
    paths = {"llava": tiny_llava, "llava_next": tiny_llava_next}

    def get(family, attention="eager"):
        model, processor = load(paths[family], attention)
        assert "_hiprune_handle" not in vars(model), "an earlier test left it patched"
        return model, processor

    return get


def config(retention) -> HiPruneConfig:
    return HiPruneConfig(retention=retention, alpha=ALPHA, object_layer=OBJECT_LAYER)


def generate(model, arguments, **settings):
    arguments = {**arguments, "pad_token_id": 0, "max_new_tokens": 6, "do_sample": False}
    # Without an end token random weights go on to the full length, for more to compare.
    return model.generate(arguments.pop("input_ids"), eos_token_id=-1, **{**arguments, **settings})


def forward(model, arguments, **more):
    with torch.no_grad():
        return model(**arguments, **more)


@pytest.mark.parametrize("use_cache", [True, False])
@over_matrix
def test_keeping_everything_changes_nothing(
    models, monkeypatch, family, attention, batch, use_cache
):
    model, processor = models(family, attention)
    if family == "llava_next":
        # The paper's code has neither un-padding nor newline tokens.
        monkeypatch.setattr(model.config, "mm_patch_merge_type", "spatial")
    arguments = inputs(model, processor, BATCHES[batch])
    labels = arguments["input_ids"].clone()
    expected = forward(model, arguments, labels=labels)
    expected_ids = generate(model, arguments, use_cache=use_cache)
    with hiprune.prune(model, config(FAMILIES[family])) as pruned:
        found = forward(model, arguments, labels=labels)
        found_ids = generate(model, arguments, use_cache=use_cache)
    assert torch.equal(found_ids, expected_ids)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)
    assert all(bool(selection.keep.all()) for selection in pruned.selections)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("share", [3, 9])
@over_matrix
def test_pruned_equals_the_hand_made_forward(models, family, attention, batch, share, use_cache):
    model, processor = models(family, attention)
    arguments = inputs(model, processor, BATCHES[batch])
    retention = FAMILIES[family] // share
    features = None
    if arguments["images"] is not None:
        features = features_by_hand(model, arguments["images"], arguments["image_sizes"], retention)
    embeds, mask = embeddings_by_hand(model, arguments, features)
    with torch.no_grad():
        expected = LlamaForCausalLM.forward(model, inputs_embeds=embeds, attention_mask=mask)
    expected_ids = LlamaForCausalLM.generate(
        model, inputs_embeds=embeds, attention_mask=mask, pad_token_id=0, eos_token_id=-1,
        max_new_tokens=6, do_sample=False, use_cache=use_cache,
    )  # fmt: skip
    with hiprune.prune(model, config(retention)) as pruned:
        found = forward(model, arguments)
        found_ids = generate(model, arguments, use_cache=use_cache)
    assert found.logits.shape == expected.logits.shape
    real = mask.bool()  # what stands at padded positions is nobody's result
    torch.testing.assert_close(found.logits[real], expected.logits[real], rtol=1e-4, atol=1e-4)
    assert torch.equal(found_ids, expected_ids)
    if features is not None:
        assert [s.indices.numel() for s in pruned.selections] == [len(f) for f in features]
        assert all(s.keep.sum() == s.indices.numel() for s in pruned.selections)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_and_beams_keep_what_generate_returns(models, monkeypatch, family):
    model, processor = models(family)
    monkeypatch.setattr(model.config, "mm_patch_merge_type", "spatial")
    arguments = inputs(model, processor, [1, 2])
    for settings in ({"do_sample": True, "temperature": 0.7}, {"num_beams": 3}):
        torch.manual_seed(0)
        expected = generate(model, arguments, **settings)
        with hiprune.prune(model, config(FAMILIES[family])):
            torch.manual_seed(0)
            assert torch.equal(generate(model, arguments, **settings), expected)
        with hiprune.prune(model, config(FAMILIES[family] // 9)):
            assert generate(model, arguments, **settings).shape == expected.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(models, monkeypatch, family, dtype):
    model, processor = models(family)
    model = copy.deepcopy(model).to(dtype)
    monkeypatch.setattr(model.config, "mm_patch_merge_type", "spatial")
    arguments = inputs(model, processor, [1, 2])
    images = arguments["images"]
    arguments["images"] = (
        [image.to(dtype) for image in images] if isinstance(images, list) else images.to(dtype)
    )
    expected = forward(model, arguments).logits
    with hiprune.prune(model, config(FAMILIES[family])):
        assert torch.equal(forward(model, arguments).logits, expected)
    with hiprune.prune(model, config(FAMILIES[family] // 3)) as pruned:
        assert forward(model, arguments).logits.dtype == expected.dtype
    assert all(s.anchor.any() and s.register.any() for s in pruned.selections)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_keeps_its_tokens_whatever_is_beside_it(models, family):
    model, processor = models(family)
    with hiprune.prune(model, config(FAMILIES[family] // 3)) as pruned:
        forward(model, inputs(model, processor, [2, 1, 1]))
        together = pruned.selections
        forward(model, inputs(model, processor, [0]))
        assert pruned.selections is together, "a prompt without an image leaves them"
        for index in range(4):
            forward(model, inputs(model, processor, [1], first=index))
            (alone,) = pruned.selections
            assert torch.equal(alone.indices, together[index].indices)


def test_the_kernel_of_the_language_model_does_not_matter_to_the_selection(models):
    kept = []
    for attention in ("eager", "sdpa"):
        model, processor = models("llava", attention)
        with hiprune.prune(model, config(12)) as pruned:
            forward(model, inputs(model, processor, [2]))
        kept.append(torch.cat([s.indices for s in pruned.selections]))
    assert torch.equal(*kept)


def test_views_as_list_and_as_tensor(models):
    model, processor = models("llava_next")
    arguments = inputs(model, processor, [1, 1])
    views = arguments["images"][0]
    arguments["image_sizes"] = [arguments["image_sizes"][0]] * 2
    with hiprune.prune(model, config(60)):
        as_list = forward(model, {**arguments, "images": [views, views]}).logits
        as_tensor = forward(model, {**arguments, "images": torch.stack([views, views])}).logits
    assert torch.equal(as_list, as_tensor)


def test_images_as_list_for_llava_1_5(models):
    model, processor = models("llava")
    arguments = inputs(model, processor, [2, 1])
    with hiprune.prune(model, config(12)):
        expected = forward(model, arguments).logits
        found = forward(model, {**arguments, "images": list(arguments["images"])}).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("retention", [60, 0.5, 0.12])
def test_budget_per_view_of_llava_next(models, retention):
    model, processor = models("llava_next")
    with hiprune.prune(model, config(retention)) as pruned:
        forward(model, inputs(model, processor, [3]))
    for selection, views in zip(pruned.selections, (5, 3, 4), strict=True):
        whole = retention if isinstance(retention, int) else round(retention * views * TOKENS)
        assert selection.indices.shape == (views, min(whole // views, TOKENS))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_the_result_needs_runs(models, monkeypatch, family):
    model, processor = models(family)
    ran, seen = [], []
    # (layer, tokens of a view) of the attention's projections and of the MLP; without hooks, for
    # which the tower would run as it is.
    numbers = {
        linear: number
        for number, layer in enumerate(
            model.get_vision_tower().vision_tower.vision_model.encoder.layers, 1
        )
        for linear in (layer.self_attn.k_proj, layer.mlp.fc2)
    }
    linear = torch.nn.Linear.forward

    def forward_of(module, x):
        if module in numbers:
            ran.append((numbers[module], x.shape[1]))
        return linear(module, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward_of)
    hook = model.model.mm_projector.register_forward_hook(lambda m, a, out: seen.append(out.shape))
    with hiprune.prune(model, config(15)):
        forward(model, inputs(model, processor, [2]))
    hook.remove()
    whole = [(n, 1 + TOKENS) for n in range(1, OUTPUT_LAYER + 1) for _ in range(2)]
    # The output layer's MLP sees kept tokens alone; the images have 5 and 3 views.
    kept = {"llava": [15], "llava_next": [15 // 5, 15 // 3]}[family]
    assert ran == [*whole[:-1], *((OUTPUT_LAYER, n) for n in kept)]
    assert [shape[:-1].numel() for shape in seen] == [30 if family == "llava" else 15 + 15]


def test_an_object_layer_beyond_the_output_layer(models):
    model, processor = models("llava")
    arguments = inputs(model, processor, [1])
    tower = model.get_vision_tower().vision_tower
    attentions = tower(arguments["images"], output_attentions=True).attentions
    last = attentions[LAYERS - 1].mean(dim=(1, 2))[0, 1:]
    with hiprune.prune(model, HiPruneConfig(12, alpha=1.0, object_layer=LAYERS)) as pruned:
        forward(model, arguments)
    anchors = pruned.selections[0].anchor[0].nonzero().flatten()
    assert set(anchors.tolist()) == set(last.topk(2).indices.tolist())
