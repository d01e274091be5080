"""Two ranks of tensor parallelism: they choose alike, and answer as hiprune.apply on one model."""

import multiprocessing
from contextlib import contextmanager

import pytest
from hiprune.models.vllm_tower import TowerHooks
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.v1.executor import multiproc_executor
from vllm_engines import Engine, close_shared, equal, expected, requests

ASKED = tuple(requests(10))  # one each of two turns, and with two, three and no pictures
DATA = {"mm_encoder_tp_mode": "data"}  # a rank has all of the tower, and some of the pictures


@pytest.fixture(autouse=True)
def _workers_are_forked(monkeypatch):
    """In place of spawned, which vLLM does on a CPU: all that they import is there already."""
    close_shared()
    cleanup_dist_env_and_memory()  # the groups of one rank, which forks would have too
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiproc_executor, "get_mp_context", lambda: fork)
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # a function, to the workers


@contextmanager
def two_ranks(family, **options):
    pruned = Engine(family, {"retention": 0.334}, tensor_parallel_size=2, **options)
    try:
        yield pruned
    finally:
        pruned.close()


def own_heads(worker):
    """A rank's choice by its own heads alone."""
    TowerHooks.mean_of_ranks = lambda hooks, scores: scores


@pytest.mark.parametrize("family, options", [("llava", {}), ("qwen2_vl", {}), ("qwen2_5_vl", DATA)])
def test_answers_are_those_of_transformers(family, options):
    wanted = expected(family, ASKED, (("retention", 0.334),))
    with two_ranks(family, **options) as pruned:
        found = pruned.answers(ASKED)
        assert [sum(each.kept) for each in found] == [sum(each.kept) for each in wanted]
        assert equal(found, wanted) == len(ASKED)
        if family == "qwen2_vl":
            # The control: random weights tell whose choice is not the mean of the ranks'.
            pruned.llm.collective_rpc(own_heads)
            pruned.forget()
            assert equal(pruned.answers(ASKED), wanted) < len(ASKED) - 2
