"""transformers' LLaVA with HiPrune: the matrix of family x attention x batch x images x cache."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="transformers' own LLaVA is newer")

from llava_hf_models import (
    FAMILIES,
    IMAGE,
    LAYERS,
    OUTPUT_LAYER,
    PAD,
    STEPS,
    TOKENS,
    config,
    decode_by_hand,
    features_by_hand,
    forward,
    generate,
    inputs,
    load,
    one_thread,  # noqa: F401 - a fixture that all tests here use
    prompt_by_hand,
)

import hiprune
from hiprune import HiPruneConfig

BATCHES = {
    "1 x 0": [0], "1 x 1": [1], "1 x 2": [2],
    "3 x 0": [0, 0, 0], "3 x 1": [1, 1, 1], "3 x 2": [2, 2, 2], "mixed": [1, 0, 2],
}  # fmt: skip


def over_matrix(test):
    for mark in (
        pytest.mark.parametrize("family", FAMILIES),
        pytest.mark.parametrize("attention", ["eager", "sdpa"]),
        pytest.mark.parametrize("batch", BATCHES),
    ):
        test = mark(test)
    return test


@over_matrix
@pytest.mark.parametrize("share", [1, 3, 9])
def test_pruned_equals_the_hand_made_forward(family, attention, batch, share):
    """Share 1 of LLaVA-NeXT is the merge type `spatial`, unpruned."""
    model, arguments = load(family, attention), inputs(family, BATCHES[batch])
    ids, retention = arguments["input_ids"], FAMILIES[family] // share
    features = features_by_hand(family, arguments, retention)
    # Nor is the first token's loss anyone's: what stands before it is padding.
    labels = ids.masked_fill((ids == IMAGE) | (ids == PAD) | (ids == 1), -100)
    made = prompt_by_hand(family, arguments, features, labels)
    expected = forward(model, made)
    made.pop("labels")
    expected_ids = torch.cat([ids, decode_by_hand(model, made, STEPS)], dim=1)
    with hiprune.prune(model, config(retention)) as pruned:
        found = forward(model, arguments, labels=labels)
        found_ids = [generate(model, arguments, use_cache=cache) for cache in (True, False)]
    assert found.logits.shape == expected.logits.shape
    real = made["attention_mask"].bool()  # what stands at padded positions is nobody's result
    torch.testing.assert_close(found.logits[real], expected.logits[real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.loss, expected.loss)
    assert torch.equal(found_ids[0], expected_ids)
    assert torch.equal(found_ids[1], expected_ids)
    assert [s.indices.numel() for s in pruned.selections] == [len(f) for f in features]
    assert all(s.keep.sum() == s.indices.numel() for s in pruned.selections)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("batch", BATCHES)
def test_keeping_everything_changes_nothing(attention, batch):
    model, arguments = load("llava", attention), inputs("llava", BATCHES[batch])
    labels = arguments["input_ids"].clone()  # as given, images and padding included
    expected = forward(model, arguments, labels=labels)
    expected_ids = [generate(model, arguments, use_cache=cache) for cache in (True, False)]
    with hiprune.prune(model, config(TOKENS)) as pruned:
        found = forward(model, arguments, labels=labels.masked_fill(labels == PAD, -100))
        found_ids = [generate(model, arguments, use_cache=cache) for cache in (True, False)]
    real = arguments["attention_mask"].bool()
    torch.testing.assert_close(found.logits[real], expected.logits[real])
    if real.all():
        torch.testing.assert_close(found.loss, expected.loss)
    assert torch.equal(found_ids[0], expected_ids[0])
    assert torch.equal(found_ids[1], expected_ids[1])
    assert all(bool(selection.keep.all()) for selection in pruned.selections)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_keeps_its_tokens_whatever_is_beside_it(family):
    model = load(family)
    with hiprune.prune(model, config(FAMILIES[family] // 3)) as pruned:
        forward(model, inputs(family, [2, 1, 1]))
        together = pruned.selections
        forward(model, inputs(family, [0]))
        assert pruned.selections is together, "a prompt without an image leaves them"
        for index in range(4):
            forward(model, inputs(family, [1], first=index))
            (alone,) = pruned.selections
            assert torch.equal(alone.indices, together[index].indices)


@pytest.mark.parametrize("retention", [60, 0.5, 0.12])
def test_budget_per_view_of_llava_next(retention):
    model = load("llava_next")
    with hiprune.prune(model, config(retention)) as pruned:
        forward(model, inputs("llava_next", [3]))
    for selection, views in zip(pruned.selections, (5, 3, 4), strict=True):
        whole = retention if isinstance(retention, int) else round(retention * views * TOKENS)
        assert selection.indices.shape == (views, min(whole // views, TOKENS))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_the_result_needs_runs(family, monkeypatch):
    model = load(family)
    ran, seen, numbers = [], [], {}
    for number, layer in enumerate(model.model.vision_tower.encoder.layers, 1):
        numbers |= {id(layer.self_attn.k_proj): number, id(layer.mlp.fc2): number}
    linear = torch.nn.Linear.forward

    def forward_(module, hidden):
        # (layer, tokens of a view) of the attention's projections and of the MLP. Of the class:
        # hooks on the modules would have the whole tower run, for all that they see.
        if id(module) in numbers:
            ran.append((numbers[id(module)], hidden.shape[1]))
        return linear(module, hidden)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward_)
    projector = model.model.multi_modal_projector
    hook = projector.register_forward_hook(lambda m, a, out: seen.append(out.shape))
    with hiprune.prune(model, config(15)):
        # Once in a whole generate, whatever is made of the prompt, not once a step or beam.
        generate(model, inputs(family, [2]), use_cache=False, num_beams=2)
    hook.remove()
    whole = [(n, 1 + TOKENS) for n in range(1, OUTPUT_LAYER + 1) for _ in range(2)]
    # The output layer's MLP sees kept tokens alone; the images have 5 and 3 views.
    kept = {"llava": [15], "llava_next": [15 // 5, 15 // 3]}[family]
    assert ran == [*whole[:-1], *((OUTPUT_LAYER, n) for n in kept)]
    assert [shape[:-1].numel() for shape in seen] == [30]


def test_an_object_layer_beyond_the_output_layer():
    model, arguments = load("llava"), inputs("llava", [1])
    attentions = model.model.vision_tower(
        arguments["pixel_values"], output_attentions=True
    ).attentions
    last = attentions[LAYERS - 1].mean(dim=(1, 2))[0, 1:]
    with hiprune.prune(model, HiPruneConfig(12, alpha=1.0, object_layer=LAYERS)) as pruned:
        forward(model, arguments)
    anchors = pruned.selections[0].anchor[0].nonzero().flatten()
    assert set(anchors.tolist()) == set(last.topk(2).indices.tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(family, dtype):
    model = copy.deepcopy(load(family)).to(dtype)
    arguments = inputs(family, [1, 2])  # pixels stay float32, as processors give them
    if family == "llava":
        expected = forward(model, arguments).logits
        with hiprune.prune(model, config(TOKENS)):
            real = arguments["attention_mask"].bool()
            torch.testing.assert_close(forward(model, arguments).logits[real], expected[real])
    with hiprune.prune(model, config(FAMILIES[family] // 3)) as pruned:
        assert forward(model, arguments).logits.dtype == dtype
        assert generate(model, arguments).shape[1] == arguments["input_ids"].shape[1] + STEPS
    assert all(s.anchor.any() and s.register.any() for s in pruned.selections)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_and_views_one_after_the_other(family):
    model, arguments = load(family), inputs(family, [1, 0, 2])
    retention = FAMILIES[family] // 3
    features = features_by_hand(family, arguments, retention)
    lengths = prompt_by_hand(family, arguments, features)["attention_mask"].sum(dim=1)
    turned = dict(arguments)
    for name in ("input_ids", "attention_mask"):
        rows = zip(arguments[name], (arguments["attention_mask"] == 0).sum(dim=1), strict=True)
        turned[name] = torch.stack([row.roll(-int(pad)) for row, pad in rows])
    if family == "llava_next":
        pixels = zip(arguments["pixel_values"], (5, 3, 4), strict=True)
        turned["pixel_values"] = torch.cat([views[:count] for views, count in pixels])
    with hiprune.prune(model, config(retention)):
        left, right = forward(model, arguments).logits, forward(model, turned).logits
    assert left.shape == right.shape
    for row, other, length in zip(left, right, lengths, strict=True):
        torch.testing.assert_close(row[-length:], other[:length], rtol=1e-4, atol=1e-4)
