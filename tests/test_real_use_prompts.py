"""Prompts as people make them: padding, positions, packing, embeddings, labels, missing images."""

from __future__ import annotations

import warnings

import pytest
import torch
from family import BY_HAND, BY_TOKEN, EXACT, error_of, forward, placed, where_real
from matrix import over_families, over_transformers
from torch.testing import assert_close

import hiprune
from hiprune import HiPruneError

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = [1, 2]


def with_answers(arguments):
    """Right-padded answers behind left-padded prompts, as preference training makes them."""
    answers = torch.tensor([[20, 21, 22, 23], [24, 25, 0, 0]])
    more = {"input_ids": answers, "attention_mask": answers > 0, "mm_token_type_ids": 0 * answers}
    return arguments | {
        name: torch.cat([arguments[name], value.to(arguments[name])], dim=1)
        for name, value in more.items()
        if name in arguments
    }


@over_families
def test_padding_on_both_sides_of_a_batch(family):
    """Every row as it is alone, its answer where it was, counted from the end."""
    model = family.model()
    arguments = with_answers(family.inputs(model, BATCH))
    plain, whole = family.plain(model, arguments)
    expected = forward(plain, whole).logits
    rows = [
        family.by_hand(model, row, family.third, 1)[0] for row in family.alone(arguments, BATCH)
    ]
    with hiprune.prune(model, family.config(family.full)):
        found = forward(model, arguments).logits
    assert_close(where_real(found, whole), where_real(expected, whole), **EXACT)
    pads = [0, 2]
    if family.blanks:  # the package pads anew, on one side
        pads = [0, 0]
    with hiprune.prune(model, family.config(family.third)):
        found = placed(forward(model, arguments).logits, rows, pads)
        assert_close(found, rows, **BY_HAND)
        if not family.blanks:
            ends = forward(model, arguments, logits_to_keep=5).logits
            lasts = [row[-5 + pad :] for row, pad in zip(rows, pads, strict=True)]
            assert_close(placed(ends, lasts, pads), lasts, **BY_HAND)


@over_families
def test_the_loss_of_a_batch_padded_on_both_sides(family):
    model = family.model()
    arguments = with_answers(family.inputs(model, BATCH))
    labels = arguments["input_ids"].clone()
    labels[:, :-4] = -100
    labels[labels == 0] = -100
    plain, whole = family.plain(model, arguments | {"labels": labels})
    expected = forward(plain, whole).loss
    scores = []
    for row, n in zip(family.alone(arguments, BATCH), (4, 2), strict=True):
        logits = family.by_hand(model, row, family.third, 1)[0].log_softmax(-1)
        scores.append(logits[-n - 1 : -1].gather(1, row["input_ids"][0, -n:, None]))
    by_hand = -torch.cat(scores).mean().float()  # in float32, as transformers has it
    for budget, loss in ((family.full, expected), (family.third, by_hand)):
        with hiprune.prune(model, family.config(budget)):
            found = forward(model, arguments, labels=labels).loss
        assert_close(found.float(), loss.float(), **BY_HAND)


@over_families
def test_padding_on_both_sides_in_generate_keeps_to_each_image(family):
    """The selection of an image does not depend on the padding."""
    model = family.model()
    arguments = family.inputs(model, BATCH)
    with hiprune.prune(model, family.config(family.third)) as pruned:
        forward(model, arguments)
        expected = [selection.indices for selection in pruned.selections]
        forward(model, with_answers(arguments))
        found = [selection.indices for selection in pruned.selections]
    assert all(map(torch.equal, found, expected)) and len(found) == len(expected) == sum(BATCH)


def positions_of(family, model, arguments):
    """(B, T), or what M-RoPE makes of it, (3, B, T), of prompts without padding."""
    if not family.mrope:
        return torch.arange(arguments["input_ids"].shape[1])[None]
    found, _ = model.model.get_rope_index(
        arguments["input_ids"], mm_token_type_ids=arguments["mm_token_type_ids"],
        image_grid_thw=arguments.get("image_grid_thw"),
    )  # fmt: skip
    return found


@over_families
def test_positions_that_the_caller_gives(family):
    model = family.model()
    arguments = family.inputs(model, [1])
    _, whole = family.plain(model, arguments)
    # Twice as far apart; a rotary embedding does not see by how much all are shifted. In one place
    # where the plain prompt has another length than the given one (newlines).
    far = 0 if family.newlines else 2
    given = far * positions_of(family, model, arguments)
    plain, whole = family.plain(model, arguments)
    expected = forward(plain, whole, position_ids=far * positions_of(family, model, whole)).logits
    if not family.blanks:  # the package's own code makes positions anew
        assert not torch.allclose(expected, forward(plain, whole).logits)
    with hiprune.prune(model, family.config(family.full)):
        found = forward(model, arguments, position_ids=given).logits
    assert_close(where_real(found, whole), where_real(expected, whole), **EXACT)


@over_transformers
@pytest.mark.parametrize("rows", [3, 4])
def test_prompts_packed_into_one_row(family, rows):
    """Positions that start again tell where a prompt ends: each as it is alone."""
    model = family.model()
    prompts = [family.inputs(model, [1], first=number) for number in (0, 1)]
    positions = [positions_of(family, model, prompt) for prompt in prompts]
    if family.mrope and rows == 4:  # in front, the row that counts text alone
        positions = [torch.cat([torch.arange(p.shape[-1]).expand(1, 1, -1), p]) for p in positions]
    elif rows == 4:
        pytest.skip("models without M-RoPE have one row of positions")
    if family.newlines:  # filled up to the most views
        images = _stacked([prompt["pixel_values"][0] for prompt in prompts])
        prompts = [p | {"pixel_values": images[[n]]} for n, p in enumerate(prompts)]
    packed = {
        name: torch.cat([p[name] for p in prompts], dim=1 if name in BY_TOKEN else 0)
        for name in prompts[0]
        if name != "attention_mask"
    }
    given = {"position_ids": torch.cat(positions, dim=-1), "use_cache": False}

    each = torch.cat([forward(*family.plain(model, prompt)).logits[0] for prompt in prompts])
    by_hand = [family.by_hand(model, prompt, family.third, 1)[0] for prompt in prompts]
    # From M-RoPE's three rows alone transformers does not see where the second prompt begins.
    seen = not family.mrope or rows == 4
    if not family.newlines:  # its whole prompt has other positions than those given
        unpatched = forward(model, packed, **given).logits[0]
        assert torch.allclose(unpatched, each, atol=1e-6) == seen
        each = unpatched
    with hiprune.prune(model, family.config(family.full)):
        found = forward(model, packed, **given).logits[0]
    assert_close(found, each, **BY_HAND)
    if seen:
        with hiprune.prune(model, family.config(family.third)):
            found = forward(model, packed, **given).logits[0]
        assert_close(found, torch.cat(by_hand), **BY_HAND)


def _stacked(images):
    most = max(map(len, images))
    return torch.stack(
        [
            torch.cat([image, image.new_zeros(most - len(image), *image.shape[1:])])
            for image in images
        ]
    )


@over_transformers
@pytest.mark.parametrize("call", ["forward", "generate"])
@pytest.mark.parametrize("ids", [True, False])
def test_embeddings_beside_pixels(family, call, ids):
    """Embeddings that are not those of the ids: neither they nor the images may be lost."""
    model = family.model()
    arguments = family.inputs(model, [1])
    plain, whole = family.plain(model, arguments)

    def run(model, arguments):
        text = arguments["input_ids"]
        embeds = model.get_input_embeddings()(text).detach()
        embeds[:, -3:] += 0.5
        given = dict(arguments) if ids else {n: arguments[n] for n in arguments if n != "input_ids"}
        if call == "forward":
            return forward(model, given, inputs_embeds=embeds).logits
        asked = given | {"inputs_embeds": embeds, "max_new_tokens": 3, "do_sample": False}
        return model.generate(**asked, pad_token_id=0)[:, -3:]

    # Some families' forward takes both; where it does not, ours says so by name.
    taken = ids and not error_of(lambda: run(plain, whole))
    with hiprune.prune(model, family.config(family.full)):
        if taken:
            assert_close(run(model, arguments), run(plain, whole), **BY_HAND)
        else:
            with pytest.raises(HiPruneError, match=r"inputs_embeds beside|input_ids=None with pix"):
                run(model, arguments)
        assert family.answer(model, arguments) == family.answer(plain, whole)


@over_families
def test_embeddings_without_pixels_are_the_models_own(family):
    model = family.model()
    arguments = family.inputs(model, [0])
    text = arguments.pop("input_ids")
    given = {"attention_mask": arguments["attention_mask"]}
    given["inputs_embeds"] = 2 * model.get_input_embeddings()(text).detach()
    expected = forward(model, given).logits
    with hiprune.prune(model, family.config(family.third)):
        found = forward(model, given).logits
    assert_close(found, expected, **EXACT)


@over_transformers
def test_placeholders_without_pixels(family):
    """As the unpatched model, with one warning a call or a handle, not one a step."""
    model = family.model()
    arguments = family.inputs(model, BATCH)
    text = {name: arguments[name] for name in BY_TOKEN if name in arguments}
    expected, answer = forward(model, text).logits, family.answer(model, text)

    for calls in (["forward"], ["generate"], ["forward", "generate"]):
        with hiprune.prune(model, family.config(family.third)) as pruned:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if "forward" in calls:
                    found = forward(model, text).logits
                    assert_close(where_real(found, text), where_real(expected, text), **EXACT)
                if "generate" in calls:
                    assert family.answer(model, text) == answer
            told = [w for w in caught if "pixel_values" in str(w.message)]
            assert 1 <= len(told) <= len(calls), [str(w.message) for w in caught]
            assert pruned.selections == []


@over_families
@pytest.mark.parametrize("call", ["forward", "generate"])
@pytest.mark.parametrize("images", [1, 4])
def test_another_number_of_images_than_of_placeholders(family, call, images):
    if family.blanks and images > 3:
        pytest.skip("the package takes what is over for blanks")
    model = family.model()
    arguments, four = family.inputs(model, BATCH), family.inputs(model, [4])
    arguments |= family.cut(four, 0, images)
    run = (lambda a: forward(model, a)) if call == "forward" else lambda a: family.answer(model, a)
    with hiprune.prune(model, family.config(family.third)):
        with pytest.raises(HiPruneError, match=rf"input_ids|{family.pixels}"):
            run(arguments)
        run(family.inputs(model, BATCH))  # and the next is not harmed by it


@over_transformers
def test_labels_that_are_shifted_already(family):
    model = family.model()
    arguments = family.inputs(model, BATCH)
    labels = arguments["input_ids"].masked_fill(arguments["attention_mask"] == 0, -100)
    # Nor is the first token's loss anyone's: what stands before it is padding.
    labels[(labels == family.placeholder) | (labels == 1)] = -100
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    given = {"labels": labels, "shift_labels": shifted}
    for budget in (family.full, family.third):
        with hiprune.prune(model, family.config(budget)):
            expected = forward(model, arguments, labels=labels).loss
            found = forward(model, arguments, **given).loss
        assert_close(found, expected, **BY_HAND)
    # Beside labels it is shift_labels that count.
    given["labels"] = torch.full_like(labels, -100)
    with hiprune.prune(model, family.config(family.third)):
        found = forward(model, arguments, **given).loss
    assert_close(found, expected, **BY_HAND)
