"""Qwen2.5-VL in vLLM: kept tokens, positions and greedy ids of hiprune.apply on transformers."""

import pytest
import vllm_engines
from hiprune.models import qwen_pass
from hiprune.models.vllm_qwen import Pruned
from hiprune.models.vllm_qwen2_5_vl import HiPruneQwen25VL
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm_engines import engine, equal, expected, oracle, requests

import hiprune

FAMILY = "qwen2_5_vl"
ASKED = tuple(requests(20))  # two of two turns, two each with two, three and no pictures
CHUNKS = {"max_num_batched_tokens": 40, "max_num_seqs": 8}  # less than a picture's kept tokens


def wanted(retention, **settings):
    return expected(FAMILY, ASKED, (("retention", retention), *settings.items()))


@pytest.mark.parametrize("retention, options", [(1.0, {}), (0.334, CHUNKS)])
def test_answers_are_those_of_transformers(retention, options):
    """Also where prefill goes chunk by chunk, which end within a picture."""
    pruned = engine(FAMILY, {"retention": retention}, **options)
    assert type(pruned.model) is HiPruneQwen25VL
    # The second time prompts come out of the prefix cache, and pictures out of the encoder's.
    for _ in range(2):
        found = pruned.answers(ASKED)
        assert [each.kept for each in found] == [each.kept for each in wanted(retention)]
        assert equal(found, wanted(retention)) == len(ASKED)


def test_a_refused_request_leaves_the_engine_right():
    pruned = engine(FAMILY, {"retention": 0.334}, **CHUNKS)
    request = {
        "prompt": oracle(FAMILY).prompt(ASKED[0]),
        "multi_modal_data": {"image": [vllm_engines.picture(0)]},
        "mm_processor_kwargs": {"retention": 0.5},
    }
    with pytest.raises(ValueError, match=r"mm_processor_kwargs: retention=0\.5: expected"):
        pruned.llm.generate([request], use_tqdm=False)
    assert equal(pruned.answers(ASKED), wanted(0.334)) == len(ASKED)


def test_spoiled_positions_are_seen(monkeypatch):
    """The control: were positions wrong, the counts above would be lower."""
    pruned = engine(FAMILY, {"retention": 0.334}, **CHUNKS)
    pruned.forget()
    recompute = Pruned.recompute_mrope_positions

    def spoiled(*args, **kwargs):
        embeds, positions, delta = recompute(*args, **kwargs)
        return embeds, positions[[0, 2, 1]], delta  # rows for columns

    monkeypatch.setattr(Pruned, "recompute_mrope_positions", spoiled)
    assert equal(pruned.answers(ASKED), wanted(0.334)) < len(ASKED) - 2
    pruned.forget()  # for those who come after


def test_the_very_same_tokens_are_kept(monkeypatch):
    kept = []
    choose = qwen_pass.Pass.choose

    def seen(run, *args, **kwargs):
        choose(run, *args, **kwargs)
        kept.extend(tuple(each.indices.flatten().tolist()) for each in run.selections)

    settings = {"retention": 0.112, "alpha": 0.5, "object_layer": 6}
    pruned = engine(FAMILY, settings)
    monkeypatch.setattr(qwen_pass.Pass, "choose", seen)
    found = pruned.answers(ASKED)
    in_vllm, kept = set(kept), []
    answers = oracle(FAMILY).answers(list(ASKED), hiprune.HiPruneConfig(**settings))
    assert equal(found, answers) == len(ASKED)
    assert in_vllm == set(kept) and len(in_vllm) > 18


def test_a_method_that_looks_at_tokens():
    pruned = engine(FAMILY, {"retention": 0.112, "method": "divprune"})
    assert equal(pruned.answers(ASKED), wanted(0.112, method="divprune")) == len(ASKED)


def test_unset_is_vllms_own_model():
    unpruned = engine(FAMILY, None)
    assert type(unpruned.model) is Qwen2_5_VLForConditionalGeneration
    assert equal(unpruned.answers(ASKED), wanted(1.0)) == len(ASKED)


def test_a_setting_that_the_model_cannot_have_stops_the_engine(monkeypatch):
    monkeypatch.setenv("HIPRUNE_OBJECT_LAYER", "9")
    with pytest.raises(Exception, match="HIPRUNE_OBJECT_LAYER='9': expected an integer"):
        vllm_engines.Engine(FAMILY, None)
