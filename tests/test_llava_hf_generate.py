"""generate, and decoding step by step, with HiPrune on transformers' LLaVA."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="transformers' own LLaVA is newer")

from llava_hf_models import (
    FAMILIES,
    IMAGE,
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
from transformers import DynamicCache, GenerationConfig, LlamaForCausalLM

import hiprune
from hiprune import HiPruneError

ONE_EACH = [1, 0, 1]  # transformers 5.17 itself mixes up beams of prompts with several images
ANY = list(range(2, 300))  # as end token: a short answer, unless it must be longer


def pruned(family, share=9):
    return hiprune.prune(load(family), config(FAMILIES[family] // share))


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.7},
        {"num_beams": 3},
        {"num_beams": 3, "use_cache": False, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"cache_implementation": "static"},
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"max_new_tokens": None, "max_length": 54},
        {"min_length": 52, "max_new_tokens": 20, "eos_token_id": ANY},
        {"min_new_tokens": 3, "eos_token_id": ANY},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_way_of_generating(settings):
    """All tokens kept: the unpatched result; few: one of the same shape, behind the same prompt."""
    model, arguments = load("llava"), inputs("llava", ONE_EACH)
    torch.manual_seed(0)
    expected = generate(model, arguments, **settings)
    with pruned("llava", share=1):
        torch.manual_seed(0)
        assert torch.equal(generate(model, arguments, **settings), expected)
    with pruned("llava"):
        found = generate(model, arguments, **settings)
    length = arguments["input_ids"].shape[1]
    copies = len(expected) // len(ONE_EACH)
    assert len(found) == len(expected)
    assert torch.equal(found[:, :length], arguments["input_ids"].repeat_interleave(copies, dim=0))
    if "eos_token_id" not in settings:
        assert found.shape == expected.shape
    for name, least in (("min_length", 0), ("min_new_tokens", length)):
        assert found.shape[1] >= least + settings.get(name, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_of_prompts_with_several_images(family):
    """Each beam sees its own prompt's images, in their order."""
    model = load(family)
    with pruned(family):
        together = generate(model, inputs(family, [2, 1]), num_beams=3)
        alone = generate(model, inputs(family, [2]), num_beams=3)
    assert torch.equal(together[0, -STEPS:], alone[0, -STEPS:])


def test_generation_config_and_ids_by_position():
    model, arguments = load("llava"), inputs("llava", [1, 1])
    settings = GenerationConfig(max_length=60, pad_token_id=PAD, eos_token_id=None)
    ids = arguments.pop("input_ids")
    expected = model.generate(ids, settings, **arguments)
    with pruned("llava", share=1):
        assert torch.equal(model.generate(ids, settings, **arguments), expected)
        settings.max_length = ids.shape[1]  # counts the unpruned prompt, as without HiPrune
        with pytest.raises(ValueError, match="Input length of input_ids is"):
            model.generate(ids, settings, **arguments)


def test_dictionary_and_streamer():
    class Streamer:
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen += value.flatten().tolist()

        def end(self):
            self.seen.append("end")

    model, arguments, streamer = load("llava"), inputs("llava", [1]), Streamer()
    with pruned("llava"):
        plain = generate(model, arguments)
        found = generate(
            model, arguments, streamer=streamer, return_dict_in_generate=True, output_logits=True
        )
    assert torch.equal(found.sequences, plain)
    assert streamer.seen == [*plain[0].tolist(), "end"]
    assert len(found.logits) == STEPS
    short = arguments["input_ids"].shape[1] - TOKENS + TOKENS // 9
    assert found.past_key_values.get_seq_length() == short + STEPS - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_are_refused_where_there_are_images(family):
    """The prompt runs as embeddings, whose length is not that of the ids that drafts go by."""
    model, arguments, text = load(family), inputs(family, [2]), inputs(family, [0])
    assistant = LlamaForCausalLM(model.config.text_config).eval()
    with pruned(family):
        for settings in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 2}):
            (name,) = settings
            with pytest.raises(HiPruneError, match=f"^{name}=.*: expected"):
                generate(model, arguments, **settings)
            assert torch.equal(generate(model, text, **settings), generate(model, text))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_by_hand(family, masked):
    """Step by step, the caller's mask growing as it does for the unpatched model."""
    model, arguments = load(family), inputs(family, [1, 0, 2] if masked else [2])
    made = prompt_by_hand(
        family, arguments, features_by_hand(family, arguments, FAMILIES[family] // 9)
    )
    expected, answer = decode_by_hand(model, made, STEPS), []
    with pruned(family), torch.no_grad():
        step = {name: arguments[name] for name in arguments if masked or name != "attention_mask"}
        for _ in range(STEPS):
            out = model(**step, use_cache=True)
            answer.append(out.logits[:, -1].argmax(-1))
            step = {"input_ids": answer[-1][:, None], "past_key_values": out.past_key_values}
            if masked:
                mask = torch.ones(3, arguments["input_ids"].shape[1] + len(answer))
                mask[:, : -len(answer)] = arguments["attention_mask"]
                step["attention_mask"] = mask.long()
    assert torch.equal(torch.stack(answer, dim=1), expected)


def test_a_cache_that_is_used_again():
    model, arguments, cache = load("llava"), inputs("llava", [1]), DynamicCache()
    text = inputs("llava", [0])
    expected = forward(model, text).logits
    with pruned("llava"):
        forward(model, arguments, past_key_values=cache)
        with pytest.raises(HiPruneError, match="past_key_values: the cache of a pruned prompt"):
            generate(model, arguments, past_key_values=cache)
        with pytest.raises(HiPruneError, match=r"past_key_values: \d+ positions .*images"):
            forward(model, arguments, past_key_values=cache)
        cache.crop(-cache.get_seq_length())
        forward(model, text, past_key_values=cache)
        torch.testing.assert_close(forward(model, text).logits, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefill_chunk_size": 10}, "prefill_chunk_size=10: expected none"),
        ({"token_healing": True}, "token_healing=True: expected none"),
    ],
)
def test_what_generate_cannot_do_is_said(settings, message):
    model = load("llava")
    with pruned("llava"), pytest.raises(HiPruneError, match=message):
        generate(model, inputs("llava", [1, 0]), **settings)


def test_text_only_generate_is_the_unpatched_one():
    model, arguments = load("llava"), inputs("llava", [0, 0])
    expected = generate(model, arguments, cache_implementation="static")
    with pruned("llava") as handle:
        assert torch.equal(generate(model, arguments, cache_implementation="static"), expected)
        assert handle.selections == []


@pytest.mark.parametrize("images", [[0], [1]])
def test_an_answer_may_contain_the_placeholder(images):
    model, arguments = load("llava"), inputs("llava", images)
    with pruned("llava"):
        found = [
            generate(model, arguments, use_cache=cache, sequence_bias={(IMAGE,): 1e6})
            for cache in (True, False)
        ]
    assert torch.equal(*found)
    assert (found[0][0, -STEPS:] == IMAGE).all()
