"""Qwen2-VL and Qwen3-VL in vLLM, of random weights: as transformers with hiprune.apply."""

import pytest
from hiprune.models.vllm_qwen import Pruned
from hiprune.models.vllm_qwen2_vl import HiPruneQwen2VL
from hiprune.models.vllm_qwen3_vl import HiPruneQwen3VL, HiPruneQwen3VLMoe
from vllm_engines import engine, equal, expected, requests

CLASSES = {
    "qwen2_vl": HiPruneQwen2VL,
    "qwen3_vl_moe": HiPruneQwen3VLMoe,
    "qwen3_vl": HiPruneQwen3VL,
}
ASKED = tuple(requests(20))  # two of two turns, two each with two, three and no pictures
CHUNKS = {"max_num_batched_tokens": 40, "max_num_seqs": 8}  # less than a picture's kept tokens


def wanted(family, retention, **settings):
    return expected(family, ASKED, (("retention", retention), *settings.items()))


@pytest.mark.parametrize("family", CLASSES)
def test_answers_are_those_of_transformers(family, monkeypatch):
    """Chunk by chunk, and out of the caches; and the control: spoiled positions are seen."""
    pruned, right = engine(family, {"retention": 0.334}, **CHUNKS), wanted(family, 0.334)
    assert type(pruned.model) is CLASSES[family]
    for _ in range(2):
        found = pruned.answers(ASKED)
        assert [each.kept for each in found] == [each.kept for each in right]
        assert equal(found, right) == len(ASKED)
    recompute = Pruned.recompute_mrope_positions

    def spoiled(*args, **kwargs):
        embeds, positions, delta = recompute(*args, **kwargs)
        return embeds, positions[[0, 2, 1]], delta  # rows for columns

    pruned.forget()
    monkeypatch.setattr(Pruned, "recompute_mrope_positions", spoiled)
    assert equal(pruned.answers(ASKED), right) < len(ASKED) - 2


def test_deepstack_counts(monkeypatch):
    """The control: were the planes of other tokens, answers would be others."""
    pruned, right = engine("qwen3_vl", {"retention": 0.334}, **CHUNKS), wanted("qwen3_vl", 0.334)
    pruned.forget()
    kept = Pruned._kept

    def spoiled(model, embeds, grid):
        planes = embeds[:, model.visual_dim : -1].flip(0)  # the last token's first
        embeds = embeds.clone()
        embeds[:, model.visual_dim : -1] = planes
        return kept(model, embeds, grid)

    monkeypatch.setattr(Pruned, "_kept", spoiled)
    assert equal(pruned.answers(ASKED), right) < len(ASKED) - 2
    pruned.forget()


def test_a_method_without_scores():
    pruned = engine("qwen2_vl", {"retention": 0.112, "method": "uniform"})
    right = wanted("qwen2_vl", 0.112, method="uniform")
    assert equal(pruned.answers(ASKED), right) == len(ASKED)
