"""Qwen2.5-VL with HiPrune: the matrix of attention kernel x batch x images x cache x retention."""

from __future__ import annotations

import functools

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="needs the environment .venv-qwen")

from qwen_models import (
    ALPHA,
    BLOCKS,
    GRIDS,
    MERGE,
    OBJECT_LAYER,
    PAD,
    continue_by_hand,
    inputs,
    load,
    pixels,
    pruned_rows_by_hand,
    select_by_hand,
)

import hiprune
from hiprune import HiPruneConfig

BATCHES = {
    "1 x 0": [0], "1 x 1": [1], "1 x 2": [2],
    "3 x 0": [0, 0, 0], "3 x 1": [1, 1, 1], "3 x 2": [2, 2, 2], "mixed": [1, 0, 2],
}  # fmt: skip


def over_matrix(test):
    for mark in (
        pytest.mark.parametrize("attention", ["eager", "sdpa"]),
        pytest.mark.parametrize("batch", BATCHES),
        pytest.mark.parametrize("use_cache", [True, False]),
    ):
        test = mark(test)
    return test


def config(retention, object_layer=OBJECT_LAYER) -> HiPruneConfig:
    return HiPruneConfig(retention=retention, alpha=ALPHA, object_layer=object_layer)


def generate(model, arguments, **settings):
    return model.generate(**arguments, **{"max_new_tokens": 5, "do_sample": False, **settings})


def forward(model, arguments, **more):
    with torch.no_grad():
        return model(**arguments, **more)


@over_matrix
def test_keeping_everything_changes_nothing(attention, batch, use_cache):
    model, arguments = load(attention), inputs(BATCHES[batch])
    labels = arguments["input_ids"].masked_fill(arguments["input_ids"] == PAD, -100)
    expected = forward(model, arguments, labels=labels)
    expected_ids = generate(model, arguments, use_cache=use_cache)
    with hiprune.prune(model, config(1.0)):
        found = forward(model, arguments, labels=labels)
        found_ids = generate(model, arguments, use_cache=use_cache)
    assert torch.equal(found_ids, expected_ids)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)


def budget(tokens, retention):
    return retention if isinstance(retention, int) else max(1, round(retention * tokens))


@functools.cache
def by_hand(attention, batch, retention):
    """(logits, answer) of each prompt, for generate with and without a cache."""
    model, arguments = load(attention), inputs(BATCHES[batch])
    rows = pruned_rows_by_hand(model, arguments, functools.partial(budget, retention=retention))
    return [continue_by_hand(model, *row, steps=5) for row in rows]


@pytest.mark.parametrize("retention", [0.334, 0.112, 7])
@over_matrix
def test_pruned_equals_the_hand_made_forward(attention, batch, use_cache, retention):
    model, arguments = load(attention), inputs(BATCHES[batch])
    with hiprune.prune(model, config(retention)) as pruned:
        logits = forward(model, arguments).logits
        ids = generate(model, arguments, use_cache=use_cache)
    rows = by_hand(attention, batch, retention)
    width = arguments["input_ids"].shape[1]
    assert logits.shape[1] == max(len(expected) for expected, _ in rows)
    assert torch.equal(ids[:, :width], arguments["input_ids"]), "the prompt comes back whole"
    for row, (expected, answer) in enumerate(rows):
        torch.testing.assert_close(logits[row, -len(expected) :], expected, rtol=1e-4, atol=1e-4)
        assert ids[row, width:].tolist() == answer
    grids = arguments.get("image_grid_thw", [])
    assert [s.indices.shape for s in pruned.selections] == [
        (1, budget(int(grid.prod()) // MERGE**2, retention)) for grid in grids
    ] or not len(grids)


@pytest.mark.parametrize("object_layer", [1, 3, 4, 5, BLOCKS])
def test_windowed_and_full_object_layers(monkeypatch, object_layer):
    # Windows of several sizes: their scores have to compare as under one masked map.
    monkeypatch.setattr("qwen_models.OBJECT_LAYER", object_layer)
    model, arguments = load("sdpa"), inputs([2])
    with hiprune.prune(model, config(0.334, object_layer)) as pruned:
        forward(model, arguments)
    start = 0
    for grid, selection in zip(
        arguments["image_grid_thw"].tolist(), pruned.selections, strict=True
    ):
        patches = grid[1] * grid[2]
        part = arguments["pixel_values"][start : start + patches]
        start += patches
        _, expected = select_by_hand(model, part, grid, selection.indices.shape[1])
        assert torch.equal(selection.indices[0], expected)


def test_an_image_keeps_its_tokens_whatever_is_beside_it():
    model = load("sdpa")
    with hiprune.prune(model, config(0.334)) as pruned:
        forward(model, inputs([2, 0, 2]))
        together = pruned.selections
        forward(model, inputs([0]))
        assert pruned.selections is together, "a prompt without an image leaves them"
        for index in range(4):
            forward(model, inputs([1], first=index))
            assert torch.equal(pruned.selections[0].indices, together[index].indices)


def test_sampling_and_beams():
    model, arguments = load("sdpa"), inputs([1, 2])
    for settings in ({"do_sample": True, "temperature": 0.7}, {"num_beams": 3}):
        torch.manual_seed(0)
        expected = generate(model, arguments, **settings)
        with hiprune.prune(model, config(1.0)):
            torch.manual_seed(0)
            assert torch.equal(generate(model, arguments, **settings), expected)
        with hiprune.prune(model, config(0.112)):
            found = generate(model, arguments, **settings)
        assert found.shape == expected.shape
        assert torch.equal(found[:, :-5], arguments["input_ids"])


@pytest.mark.parametrize("retention", [1.0, 0.112])
def test_lengths_and_penalties_count_the_unpruned_prompt(retention):
    model, arguments = load("sdpa"), inputs([1])
    width = arguments["input_ids"].shape[1]
    with hiprune.prune(model, config(retention)):
        found = generate(model, arguments, max_length=width + 3, max_new_tokens=None)
        assert found.shape[1] == width + 3
        assert model.generate(**arguments, do_sample=False).shape[1] == width + 20
        with pytest.raises(ValueError, match=f"Input length of input_ids is {width}"):
            generate(model, arguments, max_length=width, max_new_tokens=None)
        # A penalty that forbids what the prompt holds: it has to see the prompt's ids.
        found = generate(model, arguments, bad_words_ids=None, repetition_penalty=1e9)
    assert not set(found[0, width:].tolist()) & set(arguments["input_ids"][0].tolist())


def test_generate_as_a_dictionary_and_positional_ids():
    model, arguments = load("sdpa"), inputs([1])
    with hiprune.prune(model, config(0.334)):
        expected = generate(model, arguments)
        found = generate(model, arguments, return_dict_in_generate=True).sequences
        ids = arguments.pop("input_ids")
        positional = model.generate(ids, **arguments, max_new_tokens=5, do_sample=False)
    assert torch.equal(found, expected) and torch.equal(positional, expected)


def test_decoding_by_hand_goes_on_after_the_unpruned_prompt():
    # With a mask the unpatched model cannot do it either: it wants the positions then.
    model, arguments = load("sdpa"), inputs([2])
    with hiprune.prune(model, config(0.334)):
        expected = generate(model, arguments)[:, -5:]
        out = forward(model, arguments, use_cache=True)
        answer = [out.logits[:, -1:].argmax(dim=-1)]
        for _ in range(4):
            step = {"input_ids": answer[-1], "past_key_values": out.past_key_values}
            out = forward(model, step)
            answer.append(out.logits[:, -1:].argmax(dim=-1))
    assert torch.equal(torch.cat(answer, dim=1), expected)


@pytest.mark.parametrize("retention", [1.0, 0.334])
def test_videos_are_pruned_frame_by_frame(retention):
    model, arguments = load("sdpa"), inputs([1, 0], video_frames=3)
    expected = forward(model, arguments).logits
    with hiprune.prune(model, config(retention)) as pruned:
        found = forward(model, arguments).logits
        ids = generate(model, arguments)
    assert ids.shape[1] == arguments["input_ids"].shape[1] + 5
    frames = [GRIDS[0], *GRIDS[:2]]
    tokens = [grid[0] * grid[1] // MERGE**2 for grid in frames]
    assert [tuple(s.indices.shape) for s in pruned.selections] == [
        (views, round(retention * n)) for views, n in zip((1, 3, 3), tokens, strict=True)
    ]
    if retention == 1.0:
        torch.testing.assert_close(found, expected)
    else:
        # A frame keeps what it keeps as an image of its own.
        grid = GRIDS[1]
        patches = grid[0] * grid[1]
        video = pixels(grid, 51, 3)
        for frame, kept in enumerate(pruned.selections[2].indices):
            part = video[frame * patches : (frame + 1) * patches]
            _, alone = select_by_hand(model, part, (1, *grid), len(kept))
            assert torch.equal(kept, alone)


def test_only_what_the_result_needs_goes_through_the_merger():
    model, seen = load("sdpa"), []
    merger = model.model.visual.merger.mlp
    hook = merger.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    with hiprune.prune(model, config(0.334)) as pruned:
        forward(model, inputs([2]))
    hook.remove()
    assert seen == [sum(s.indices.numel() for s in pruned.selections)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model = load.__wrapped__("sdpa").to(dtype)
    arguments = inputs([1, 2])
    expected = forward(model, arguments).logits
    with hiprune.prune(model, config(1.0)):
        assert torch.equal(forward(model, arguments).logits, expected)
    with hiprune.prune(model, config(0.334)):
        assert forward(model, arguments).logits.dtype == dtype


def test_without_token_types_the_positions_are_the_model_s_own():
    # transformers then counts all tokens in one row; HiPrune keeps to what the model does.
    model, arguments = load("sdpa"), inputs([1, 2])
    del arguments["mm_token_type_ids"]
    expected, ids = forward(model, arguments).logits, generate(model, arguments)
    with hiprune.prune(model, config(1.0)):
        torch.testing.assert_close(forward(model, arguments).logits, expected)
        assert torch.equal(generate(model, arguments), ids)


def test_right_padding_in_forward_with_labels():
    model, left = load("sdpa"), inputs([1, 2])
    right = dict(left)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        rows = [
            torch.cat([row[mask], row[~mask]])
            for row, mask in zip(left[name], left["attention_mask"].bool(), strict=True)
        ]
        right[name] = torch.stack(rows)
    with hiprune.prune(model, config(0.334)):
        losses = [
            forward(
                model, a, labels=a["input_ids"].masked_fill(~a["attention_mask"].bool(), -100)
            ).loss
            for a in (left, right)
        ]
    torch.testing.assert_close(*losses)
