"""Qwen2.5-VL in vLLM: kept tokens, positions and greedy ids of hiprune.apply on transformers."""

import pytest
import vllm_engines
from hiprune.models import qwen_pass
from hiprune.models.vllm_qwen2_5_vl import HiPruneQwen25VL
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm_engines import Engine, equal, expected, oracle, requests

import hiprune

FAMILY = "qwen2_5_vl"
ASKED = tuple(requests(30))  # three of two turns, three each with two, three and no pictures


@pytest.fixture
def engine():
    """Makes engines, and ends them with the test."""
    made = []

    def make(settings, **options):
        made.append(Engine(FAMILY, settings, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def wanted(retention, **settings):
    return expected(FAMILY, ASKED, (("retention", retention), *settings.items()))


def test_unset_is_vllms_own_model(engine):
    unpruned = engine(None)
    assert type(unpruned.model) is Qwen2_5_VLForConditionalGeneration
    assert equal(unpruned.answers(ASKED), wanted(1.0)) == len(ASKED)


@pytest.mark.parametrize("retention", [1.0, 0.334, 0.112])
def test_answers_are_those_of_transformers(engine, retention):
    pruned = engine({"retention": retention})
    assert type(pruned.model) is HiPruneQwen25VL
    # The second time prompts come out of the prefix cache, and pictures out of the encoder's.
    for _ in range(2):
        found = pruned.answers(ASKED)
        assert [each.kept for each in found] == [each.kept for each in wanted(retention)]
        assert equal(found, wanted(retention)) == len(ASKED)


def test_prefill_in_chunks(engine):
    """Smaller than an image's kept tokens; and a chunk ends within one."""
    pruned = engine({"retention": 0.334}, max_num_batched_tokens=40, max_num_seqs=8)
    for _ in range(2):
        assert equal(pruned.answers(ASKED), wanted(0.334)) == len(ASKED)


def test_spoiled_positions_are_seen(engine, monkeypatch):
    """The control: were positions wrong, the counts above would be lower."""
    pruned = engine({"retention": 0.334}, enable_prefix_caching=False)
    assert equal(pruned.answers(ASKED), wanted(0.334)) == len(ASKED)
    recompute = HiPruneQwen25VL.recompute_mrope_positions

    def spoiled(*args, **kwargs):
        embeds, positions, delta = recompute(*args, **kwargs)
        return embeds, positions[[0, 2, 1]], delta  # rows for columns

    monkeypatch.setattr(HiPruneQwen25VL, "recompute_mrope_positions", spoiled)
    assert equal(pruned.answers(ASKED), wanted(0.334)) < len(ASKED) - 3


def test_the_very_same_tokens_are_kept(engine, monkeypatch):
    kept = []
    choose = qwen_pass.Pass.choose

    def seen(run, *args, **kwargs):
        choose(run, *args, **kwargs)
        kept.extend(tuple(each.indices.flatten().tolist()) for each in run.selections)

    pruned = engine({"retention": 0.112, "alpha": 0.5, "object_layer": 6})
    monkeypatch.setattr(qwen_pass.Pass, "choose", seen)
    found = pruned.answers(ASKED)
    in_vllm, kept = set(kept), []
    config = hiprune.HiPruneConfig(retention=0.112, alpha=0.5, object_layer=6)
    assert equal(found, oracle(FAMILY).answers(list(ASKED), config)) == len(ASKED)
    assert in_vllm == set(kept) and len(in_vllm) > 25


@pytest.mark.parametrize("method", ["uniform", "divprune"])
def test_other_methods(engine, method):
    pruned = engine({"retention": 0.112, "method": method})
    assert equal(pruned.answers(ASKED), wanted(0.112, method=method)) == len(ASKED)


def test_a_setting_that_the_model_cannot_have_stops_the_engine(monkeypatch):
    monkeypatch.setenv("HIPRUNE_OBJECT_LAYER", "9")
    with pytest.raises(Exception, match="HIPRUNE_OBJECT_LAYER='9': expected an integer"):
        Engine(FAMILY, None)


def test_a_refused_request_leaves_the_engine_right(engine):
    pruned = engine({"retention": 0.334})
    request = {
        "prompt": oracle(FAMILY).prompt(ASKED[0]),
        "multi_modal_data": {"image": [vllm_engines.picture(0)]},
        "mm_processor_kwargs": {"retention": 0.5},
    }
    with pytest.raises(ValueError, match=r"mm_processor_kwargs: retention=0\.5: expected"):
        pruned.llm.generate([request], use_tqdm=False)
    assert equal(pruned.answers(ASKED), wanted(0.334)) == len(ASKED)
