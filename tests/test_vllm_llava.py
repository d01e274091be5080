"""LLaVA-1.5 and LLaVA-NeXT in vLLM: kept tokens and greedy ids of hiprune.apply on transformers."""

import pytest
from hiprune.models import clip_pass
from hiprune.models.vllm_llava import HiPruneLlava, HiPruneLlavaNext
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
from vllm_engines import engine, equal, expected, requests

CLASSES = {"llava": HiPruneLlava, "llava_next": HiPruneLlavaNext}
ASKED = tuple(requests(20))  # two each of two turns, and with two, three and no pictures
CHUNKS = {"max_num_batched_tokens": 40, "max_num_seqs": 8}  # less than the tokens of some pictures


def wanted(family, retention, **settings):
    return expected(family, ASKED, (("retention", retention), *settings.items()))


@pytest.mark.parametrize(
    "family, retention, options",
    [("llava_next", 0.334, CHUNKS), ("llava", 0.334, CHUNKS), ("llava", 16, {})],
)
def test_answers_are_those_of_transformers(family, retention, options):
    """Also where prefill goes chunk by chunk, which end within a picture."""
    pruned = engine(family, {"retention": retention}, **options)
    assert type(pruned.model) is CLASSES[family]
    # The second time prompts come out of the prefix cache, and pictures out of the encoder's.
    for _ in range(2):
        found = pruned.answers(ASKED)
        assert [sum(each.kept) for each in found] == [
            sum(each.kept) for each in wanted(family, retention)
        ]
        assert equal(found, wanted(family, retention)) == len(ASKED)


def test_other_tokens_are_seen(monkeypatch):
    """The control: were other tokens kept, the counts above would be lower."""
    pruned = engine("llava", {"retention": 16})
    pruned.forget()
    ours = clip_pass.Pass.projected

    def spoiled(run, features, projector):
        return ours(run, features.flip(1), projector)  # (V, N, C_v), the last token first

    monkeypatch.setattr(clip_pass.Pass, "projected", spoiled)
    assert equal(pruned.answers(ASKED), wanted("llava", 16)) < len(ASKED) - 2
    pruned.forget()


def test_a_method_of_heads_and_features():
    pruned = engine("llava", {"retention": 16, "method": "scope"})
    assert equal(pruned.answers(ASKED), wanted("llava", 16, method="scope")) == len(ASKED)


def test_random_keeps_as_many():
    """Which ones depends on the order in which pictures come, here as in transformers."""
    pruned = engine("llava_next", {"retention": 0.112, "method": "random", "seed": 3})
    assert [sum(each.kept) for each in pruned.answers(ASKED)] == [
        sum(each.kept) for each in wanted("llava_next", 0.112)
    ]


def test_unset_is_vllms_own_model():
    """With our names of weights, since vLLM does not know those that transformers 5 writes."""
    unpruned = engine("llava_next", None)
    assert type(unpruned.model) is LlavaNextForConditionalGeneration
    right = expected("llava_next", ASKED, None)
    assert equal(unpruned.answers(ASKED), right) == len(ASKED)
