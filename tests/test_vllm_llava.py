"""LLaVA-1.5 and LLaVA-NeXT in vLLM: kept tokens and greedy ids of hiprune.apply on transformers."""

import pytest
from hiprune.models import clip_pass
from hiprune.models.vllm_llava import HiPruneLlava, HiPruneLlavaNext
from vllm_engines import Engine, equal, expected, oracle, requests

CLASSES = {"llava": HiPruneLlava, "llava_next": HiPruneLlavaNext}
ASKED = tuple(requests(20))  # two each of two turns, and with two, three and no pictures


@pytest.fixture
def engine():
    """Makes engines, and ends them with the test."""
    made = []

    def make(family, settings, **options):
        made.append(Engine(family, settings, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def wanted(family, retention, **settings):
    return expected(family, ASKED, (("retention", retention), *settings.items()))


@pytest.mark.parametrize(
    "family, retention",
    [("llava", 1.0), ("llava", 0.334), ("llava", 16), ("llava_next", 0.334), ("llava_next", 80)],
)
def test_answers_are_those_of_transformers(engine, family, retention):
    pruned = engine(family, {"retention": retention})
    assert type(pruned.model) is CLASSES[family]
    # The second time prompts come out of the prefix cache, and pictures out of the encoder's.
    for _ in range(2):
        found = pruned.answers(ASKED)
        assert [sum(each.kept) for each in found] == [
            sum(each.kept) for each in wanted(family, retention)
        ]
        assert equal(found, wanted(family, retention)) == len(ASKED)


@pytest.mark.parametrize("family", CLASSES)
def test_prefill_in_chunks(engine, family):
    options = {"max_num_batched_tokens": 40, "max_num_seqs": 8, "enable_prefix_caching": False}
    pruned = engine(family, {"retention": 0.334}, **options)
    assert equal(pruned.answers(ASKED), wanted(family, 0.334)) == len(ASKED)


def test_other_tokens_are_seen(engine, monkeypatch):
    """The control: were other tokens kept, the counts above would be lower."""
    pruned = engine("llava", {"retention": 16}, enable_prefix_caching=False)
    ours = clip_pass.Pass.projected

    def spoiled(run, features, projector):
        return ours(run, features.flip(1), projector)  # (V, N, C_v), the last token first

    monkeypatch.setattr(clip_pass.Pass, "projected", spoiled)
    assert equal(pruned.answers(ASKED), wanted("llava", 16)) < len(ASKED) - 2


@pytest.mark.parametrize("method", ["cls", "scope"])
def test_other_methods(engine, method):
    pruned = engine("llava", {"retention": 16, "method": method})
    assert equal(pruned.answers(ASKED), wanted("llava", 16, method=method)) == len(ASKED)


def test_random_keeps_as_many(engine):
    """Which ones depends on the order in which pictures come, here as in transformers."""
    pruned = engine("llava_next", {"retention": 0.112, "method": "random", "seed": 3})
    assert oracle("llava_next").model.config.image_token_id is not None
    assert [sum(each.kept) for each in pruned.answers(ASKED)] == [
        sum(each.kept) for each in wanted("llava_next", 0.112)
    ]
