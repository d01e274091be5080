"""select_tokens: the released code's token sets, the exact count whatever the scores, bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hiprune import HiPruneError, TokenSelection, select_tokens

VECTORS = json.loads((Path(__file__).parent / "data" / "selection_vectors.json").read_text())


def oracle(object_scores, output_scores, columns, budget, alpha):
    """The method read off the paper, one token at a time: anchors, buffers, registers as sets."""

    def best(scores, tokens):
        # NaN last; among equals the lower index first.
        def place(i):
            return (1, 0, i) if math.isnan(scores[i]) else (0, -scores[i], i)

        return sorted(tokens, key=place)

    tokens = len(object_scores)
    budget = min(budget, tokens)
    anchors = best(object_scores, range(tokens))[: round(alpha * budget / 5)]
    near = {
        min(max(i + step, 0), tokens - 1) for i in anchors for step in (-1, 1, -columns, columns)
    }
    buffers = best(object_scores, near - set(anchors))[: budget - len(anchors)]
    rest = set(range(tokens)) - set(anchors) - near
    registers = best(output_scores, rest)[: budget - len(anchors) - len(buffers)]
    return set(anchors), set(buffers), set(registers)


def as_sets(selection: TokenSelection, row: int = 0):
    masks = (selection.anchor, selection.buffer, selection.register)
    return tuple(set(mask[row].nonzero().flatten().tolist()) for mask in masks)


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["case"])
def test_keeps_the_tokens_that_the_released_code_keeps(case):
    selection = select_tokens(
        torch.tensor([case["object_scores"]]),
        torch.tensor([case["output_scores"]]),
        columns=case["columns"],
        budget=case["budget"],
        alpha=case["alpha"],
    )
    assert selection.indices.tolist() == [case["kept"]]


def scores_of(kind: str, generator: torch.Generator, shape=(3, 36)) -> torch.Tensor:
    random = torch.rand(shape, generator=generator)
    return {
        "random": random,
        "ties": (random * 4).floor(),
        "equal": torch.full(shape, 0.25),
        "nan": torch.where(random < 0.4, math.nan, random),
        "all nan": torch.full(shape, math.nan),
        "infinite": torch.where(
            random < 0.2, -math.inf, torch.where(random > 0.9, math.inf, random)
        ),
        "half": random.half(),
        "integer": (random * 10).long(),
    }[kind]


@pytest.mark.parametrize("alpha", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("budget", [1, 3, 12, 35, 36, 100])
@pytest.mark.parametrize(
    "kind", ["random", "ties", "equal", "nan", "all nan", "infinite", "half", "integer"]
)
def test_equals_the_oracle_and_keeps_exactly_the_budget(kind, budget, alpha):
    generator = torch.Generator().manual_seed(budget)
    object_scores, output_scores = scores_of(kind, generator), scores_of(kind, generator)
    selection = select_tokens(object_scores, output_scores, columns=6, budget=budget, alpha=alpha)
    assert selection.indices.shape == (3, min(budget, 36))
    for row in range(3):
        expected = oracle(
            object_scores[row].tolist(), output_scores[row].tolist(), 6, budget, alpha
        )
        assert as_sets(selection, row) == expected
        kept = sorted(set().union(*expected))
        assert selection.indices[row].tolist() == kept
        assert selection.keep[row].nonzero().flatten().tolist() == kept


def test_scores_of_two_types_lose_no_digit():
    """Half precision beside integers, of which float32 has no two of these apart."""
    object_scores = torch.tensor([[2.0, 1.0, 0.0, 0.0]]).half()
    output_scores = 2**24 + torch.tensor([[0, 0, 0, 1]])
    selection = select_tokens(object_scores, output_scores, columns=4, budget=1, alpha=0)
    assert selection.indices.tolist() == [[3]]


def test_anchors_come_first_then_buffers_by_score_when_they_exceed_the_budget():
    # N' = 64 and alpha = 1: 13 anchors and up to 52 buffers, where the released code crashes.
    object_scores = torch.zeros(1, 576)
    anchors = torch.arange(13) * 43 + 30  # apart from each other, away from the borders
    object_scores[0, anchors] = 1.0
    near = torch.cat([anchors + step for step in (-1, 1, -24, 24)])
    assert len(near.unique()) == 52
    object_scores[0, near] = torch.linspace(0.5, 0.1, 52)  # the last one is the one to drop
    selection = select_tokens(object_scores, torch.rand(1, 576), columns=24, budget=64, alpha=1)
    assert as_sets(selection) == (set(anchors.tolist()), set(near[:-1].tolist()), set())


def test_neighbours_wrap_on_the_flat_index_and_are_clamped():
    scores = torch.zeros(1, 16)
    scores[0, 4] = 1.0  # first token of the second row: its left neighbour ends the row above
    selection = select_tokens(scores, torch.zeros(1, 16), columns=4, budget=5, alpha=1)
    assert as_sets(selection)[:2] == ({4}, {3, 5, 0, 8})
    scores = torch.zeros(1, 16)
    scores[0, 2] = 1.0  # top row: the upper neighbour is clamped to token 0
    selection = select_tokens(scores, torch.zeros(1, 16), columns=4, budget=5, alpha=1)
    assert as_sets(selection)[:2] == ({2}, {1, 3, 0, 6})


def test_rows_of_a_batch_do_not_see_each_other():
    generator = torch.Generator().manual_seed(0)
    scores = [scores_of("ties", generator) for _ in range(2)]
    together = select_tokens(*scores, columns=6, budget=12, alpha=0.5)
    for row in range(3):
        alone = select_tokens(
            *(score[row : row + 1] for score in scores), columns=6, budget=12, alpha=0.5
        )
        for name in ("anchor", "buffer", "register", "keep", "indices"):
            assert torch.equal(getattr(together[row : row + 1], name), getattr(alone, name))


def test_gather_takes_the_kept_rows_in_order():
    selection = select_tokens(torch.rand(2, 9), torch.rand(2, 9), columns=3, budget=4, alpha=0.1)
    tokens = torch.rand(2, 9, 5)
    expected = torch.stack([tokens[row, selection.indices[row]] for row in range(2)])
    assert torch.equal(selection.gather(tokens), expected)


def test_nothing_on_the_way_waits_for_the_device():
    # The meta device holds no values: whatever would read one on the host fails there.
    scores = torch.empty(2, 576, device="meta")
    selection = select_tokens(scores, scores, columns=24, budget=64, alpha=0.5)
    assert selection.indices.shape == (2, 64)
    assert selection.gather(torch.empty(2, 576, 8, device="meta")).shape == (2, 64, 8)


GOOD = {"columns": 3, "budget": 4, "alpha": 0.1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("columns", 0), ("columns", 2.0), ("columns", True), ("budget", 0), ("budget", -1),
        ("budget", 4.5), ("budget", True), ("budget", None), ("alpha", -0.1), ("alpha", 1.5),
        ("alpha", math.nan), ("alpha", "0.1"), ("alpha", None), ("alpha", True),
    ],
)  # fmt: skip
def test_bad_settings_are_named(name, value):
    scores = torch.rand(1, 9)
    with pytest.raises(HiPruneError, match=f"{name}={value!r}: expected"):
        select_tokens(scores, scores, **{**GOOD, name: value})


def test_numbers_of_numpy_are_numbers():
    scores = torch.rand(2, 1, 9)
    settings = {"columns": np.int64(3), "budget": np.int32(4), "alpha": np.float64(0.5)}
    found = select_tokens(*scores, **settings)
    expected = select_tokens(*scores, columns=3, budget=4, alpha=0.5)
    assert torch.equal(found.indices, expected.indices)


@pytest.mark.parametrize("shapes", [((9,), (9,)), ((1, 9), (1, 8)), ((1, 0), (1, 0))])
def test_bad_shapes_are_named(shapes):
    with pytest.raises(HiPruneError, match="_scores: shape"):
        select_tokens(*(torch.rand(shape) for shape in shapes), **GOOD)
