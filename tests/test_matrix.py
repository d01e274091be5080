"""The matrix itself: its oracles agree with each other where both can say something."""

from __future__ import annotations

import pytest
from family import close, close_where_real, forward, placed
from matrix import over_families

import hiprune

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = [1, 2, 0]


@over_families
def test_the_oracle_by_hand_with_everything_kept_is_the_plain_model(family):
    model = family.model()
    arguments = family.inputs(model, BATCH)
    plain, whole = family.plain(model, arguments)
    by_hand = [family.by_hand(model, row, family.full, 4) for row in family.alone(arguments, BATCH)]
    rows = [logits for logits, _ in by_hand]
    close(placed(forward(plain, whole).logits, rows, [0] * 3), rows)
    assert family.answer(plain, whole) == [answer for _, answer in by_hand]


@over_families
def test_each_entry_at_full_budget_and_at_a_third(family):
    model = family.model()
    arguments = family.inputs(model, BATCH)
    plain, whole = family.plain(model, arguments)
    expected, answer = forward(plain, whole).logits, family.answer(plain, whole)
    rows = [family.by_hand(model, row, family.third, 4) for row in family.alone(arguments, BATCH)]
    with hiprune.prune(model, family.config(family.full)):
        close_where_real(forward(model, arguments).logits, expected, whole)
        assert family.answer(model, arguments) == answer
    with hiprune.prune(model, family.config(family.third)):
        logits = [row for row, _ in rows]
        close(placed(forward(model, arguments).logits, logits, [0] * 3), logits)
        assert family.answer(model, arguments) == [row for _, row in rows]
