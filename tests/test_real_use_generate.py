"""generate with settings that people use: the unpatched ids, or a refusal by name."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from family import STEPS, error_of, forward, outcome, right_or_refused
from matrix import over_families, over_transformers
from transformers import LogitsProcessor, LogitsProcessorList

import hiprune

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = [1, 2]
CACHE = ("past_key_values", "cache")  # its name before and after transformers 5.24

# What changes the answer, as a rule for the oracle: (prompt ids, answer, (1, V) scores) -> scores.


def _repetition(prompt, answer, scores):
    from transformers import EncoderRepetitionPenaltyLogitsProcessor as Processor

    return Processor(1.5, prompt)(torch.stack(answer, 1) if answer else prompt[:, :0], scores)


def _ngrams(prompt, answer, scores):
    return scores.index_fill(-1, prompt.unique(), -torch.inf)


SETTINGS = {
    "encoder_repetition_penalty": ({"encoder_repetition_penalty": 1.5}, _repetition),
    "encoder_no_repeat_ngram_size": ({"encoder_no_repeat_ngram_size": 1}, _ngrams),
    "prompt_lookup_num_tokens": ({"prompt_lookup_num_tokens": 2}, None),
    "cache_implementation": ({"cache_implementation": "static"}, None),
    "prefill_chunk_size": ({"prefill_chunk_size": 10}, None),
}


@over_transformers
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_look_at_the_prompt_or_cut_it(family, name):
    settings, rule = SETTINGS[name]
    model, counts = family.model(), [1] if name == "prompt_lookup_num_tokens" else BATCH
    arguments = family.inputs(model, counts)
    plain, whole = family.plain(model, arguments)
    right, also = outcome(lambda: family.answer(plain, whole, **settings))
    if also:  # what the unpatched model cannot do may be done well all the same
        right = family.answer(plain, whole)
    by_hand = []
    for row, ids in zip(family.alone(arguments, counts), arguments["input_ids"], strict=True):

        def pick(answer, scores, ids=ids):  # the prompt's ids with their padding, as they are given
            return (rule(ids[None], answer, scores) if rule else scores).argmax(-1)

        by_hand.append(family.by_hand(model, row, family.third, STEPS, pick)[1])
    names = [name, *(["attention_mask"] if name == "cache_implementation" else [])]
    for budget, expected in ((family.full, right), (family.third, by_hand)):
        with hiprune.prune(model, family.config(budget)):
            run = lambda: family.answer(model, arguments, **settings)  # noqa: E731
            right_or_refused(run, expected, *names, also=also)


@over_transformers
def test_guidance(family):
    """Guided by the answer's likelihood without the prompt, which has no image."""
    model = family.model()
    arguments = family.inputs(model, [1])
    plain = family.plain(model, arguments)
    right, also = outcome(lambda: family.answer(*plain, guidance_scale=1.5))  # 5.24's Qwen2.5-VL
    last = arguments["input_ids"][:, -1]

    def pick(answer, scores):
        text = torch.stack([last, *answer], dim=1)
        without = forward(model, {"input_ids": text}).logits[:, -1].log_softmax(-1)
        return (without + 1.5 * (scores.log_softmax(-1) - without)).argmax(-1)

    by_hand = family.answer_by_hand(model, arguments, [1], pick=pick)
    assert by_hand != family.answer_by_hand(model, arguments, [1]), "guidance matters here"
    if also:
        right = [family.by_hand(model, *family.alone(arguments, [1]), family.full, STEPS, pick)[1]]
    for budget, expected in ((family.full, right), (family.third, by_hand)):
        with hiprune.prune(model, family.config(budget)):
            run = lambda: family.answer(model, arguments, guidance_scale=1.5)  # noqa: E731
            right_or_refused(run, expected, "guidance_scale", also=also)


def _other(model):
    """Another model of the same kind, with weights of its own."""
    other = copy.deepcopy(model)
    torch.manual_seed(3)
    for parameter in other.parameters():
        parameter.data += 0.1 * parameter.std() * torch.randn_like(parameter)
    return other


@over_transformers
@pytest.mark.parametrize("assistant", ["another", "the same", "a copy"])
@pytest.mark.parametrize("full", [True, False])
def test_assisted_decoding_gives_greedys_ids(family, assistant, full):
    model = family.model()
    arguments = family.inputs(model, [1])
    if full:
        right = family.answer(*family.plain(model, arguments))
    else:
        right = family.answer_by_hand(model, arguments, [1])
    helpers = {"another": _other, "the same": lambda model: model, "a copy": copy.deepcopy}
    helper = helpers[assistant](model)
    also = error_of(lambda: family.answer(model, arguments, assistant_model=helper))
    with hiprune.prune(model, family.config(family.full if full else family.third)):
        run = lambda: family.answer(model, arguments, assistant_model=helper)  # noqa: E731
        right_or_refused(run, right, "assistant_model", also=also)
        assert family.answer(model, arguments) == right, "and the next is not harmed by it"


@over_transformers
def test_a_patched_assistant_of_an_unpatched_model(family):
    model = family.model()
    arguments = family.inputs(model, [1])
    try:  # some of transformers' models cannot be an assistant of their kind
        family.answer(model, arguments, assistant_model=copy.deepcopy(model))
    except Exception as error:
        pytest.skip(f"nor unpatched: {error!r}"[:80])
    right, helper = family.answer(model, arguments), copy.deepcopy(model)
    with hiprune.prune(helper, family.config(family.third)):
        run = lambda: family.answer(model, arguments, assistant_model=helper)  # noqa: E731
        right_or_refused(run, right, "assistant", family.pixels, "input_ids", *CACHE)


@over_transformers
def test_a_static_cache_is_no_larger_than_unpruned(family):
    model = family.model()
    arguments = family.inputs(model, BATCH)
    settings = {"cache_implementation": "static", "return_dict_in_generate": True}

    def length():
        found = model.generate(**arguments, **settings, max_new_tokens=STEPS, do_sample=False)
        return max(layer.max_cache_len for layer in found.past_key_values.layers)

    plain = length()
    with hiprune.prune(model, family.config(family.third)):
        right_or_refused(
            length, lambda found: _at_most(found, plain), "cache_implementation", "attention_mask"
        )


def _at_most(found, most):
    assert found <= most


class Nested(LogitsProcessor):
    """Asks the same model something else in the middle of an answer, once."""

    def __init__(self, ask):
        self.ask, self.found = ask, None

    def __call__(self, ids, scores):
        if self.found is None:
            self.found = "asking"
            self.found = self.ask()
        return scores


@over_families
@pytest.mark.parametrize("full", [True, False])
def test_a_call_within_a_call(family, full):
    model = family.model()
    arguments = family.inputs(model, BATCH)
    for inner in ([1], [0]):
        other = family.inputs(model, inner, first=2)
        with hiprune.prune(model, family.config(family.full if full else family.third)):
            right, right_inner = family.answer(model, arguments), family.answer(model, other)
            nested = Nested(lambda other=other: family.answer(model, other))
            found = family.answer(model, arguments, logits_processor=LogitsProcessorList([nested]))
            assert (found, nested.found) == (right, right_inner)


@over_families
def test_an_exception_half_way_leaves_nothing_behind(family):
    model = family.model()
    arguments, text = family.inputs(model, BATCH), family.inputs(model, [0, 0])
    right, right_text = family.answer_by_hand(model, arguments, BATCH), family.answer(model, text)

    def stop():
        raise KeyboardInterrupt

    with hiprune.prune(model, family.config(family.third)):
        with pytest.raises(KeyboardInterrupt):
            stopper = LogitsProcessorList([Nested(stop)])
            family.answer(model, arguments, logits_processor=stopper)
        assert family.answer(model, text) == right_text
        assert family.answer(model, arguments) == right


@functools.cache
def _refused_unpatched(family, longer, masked):
    """What the unpatched model raises where it goes on from its cache with these ids."""
    model = family.model()
    arguments = family.inputs(model, [1])
    step = {"input_ids": torch.tensor([longer])}
    if masked:
        step["attention_mask"] = _extend(arguments, step["input_ids"])["attention_mask"]
    cache = forward(model, arguments, use_cache=True).past_key_values
    return error_of(lambda: forward(model, step, past_key_values=cache))


@over_transformers
@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("source", ["forward", "generate"])
@pytest.mark.parametrize("full", [True, False])
def test_going_on_from_the_cache_of_a_pruned_prompt(family, source, copied, masked, full):
    """A deep copy is the documented way to share a prefix; generate's cache that of a next turn."""
    model = family.model()
    arguments = family.inputs(model, [1])
    budget = family.full if full else family.third
    with hiprune.prune(model, family.config(budget)):
        if source == "generate":
            made = model.generate(
                **arguments, max_new_tokens=1, do_sample=False, return_dict_in_generate=True
            )
            longer = made.sequences[:, arguments["input_ids"].shape[1] :]
        else:
            made, longer = forward(model, arguments, use_cache=True), torch.tensor([[7, 8]])
    extended = _extend(arguments, longer)
    if full:
        right = forward(*family.plain(model, extended)).logits[:, -1]
    else:
        (row,) = family.alone(extended, [1])
        right = family.by_hand(model, row, budget, 1)[0][-1:]
    step = {"input_ids": longer}
    if masked:
        step["attention_mask"] = extended["attention_mask"]
    also = _refused_unpatched(family, tuple(longer[0].tolist()), masked)
    cache = copy.deepcopy(made.past_key_values) if copied else made.past_key_values

    def check(found):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)

    with hiprune.prune(model, family.config(budget)):
        run = lambda: forward(model, step, past_key_values=cache).logits[:, -1]  # noqa: E731
        right_or_refused(run, check, *CACHE, "attention_mask", also=also)


@over_transformers
@pytest.mark.parametrize("copied", [True, False])
def test_generate_from_the_cache_of_a_pruned_prompt(family, copied):
    model = family.model()
    arguments = family.inputs(model, [1])
    extended = _extend(arguments, torch.tensor([[7, 8]]))
    right = family.answer_by_hand(model, extended, [1])
    text = {name: extended[name] for name in ("input_ids", "attention_mask")}

    def run(asked):
        cache = forward(model, arguments, use_cache=True).past_key_values
        cache = copy.deepcopy(cache) if copied else cache
        return family.answer(model, asked | {"past_key_values": cache})

    for asked in (extended, text):
        also = error_of(lambda asked=asked: run(asked))
        with hiprune.prune(model, family.config(family.third)):
            right_or_refused(lambda asked=asked: run(asked), right, *CACHE, also=also)
            assert family.answer(model, extended) == right


def _extend(arguments, ids):
    """The same prompt with more text behind it."""
    more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    more["mm_token_type_ids"] = torch.zeros_like(ids)
    return arguments | {
        name: torch.cat([arguments[name], value.to(arguments[name])], dim=1)
        for name, value in more.items()
        if name in arguments
    }
