"""PromptPlan against a loop over the tokens of a batch, whatever the masks, images and sides."""

from __future__ import annotations

import pytest
import torch
from hiprune.models.prompt import ImageSpan, PromptPlan

from hiprune import HiPruneError


def oracle(kinds, mask, spans, from_right):
    """(columns, visual, mask, real, dropped) as lists, read off the rule, one token at a time."""
    length = len(kinds[0])
    lines, pads = [], []
    for number, row in enumerate(kinds):
        ones = [column for column in range(length) if mask is None or mask[number][column]]
        first, stop = (ones[0], ones[-1] + 1) if ones else (0, length)
        pads.append((first, length - stop))
        waiting = {kind: iter(images[number]) for kind, images in spans.items()}
        left, line = dict.fromkeys(spans, 0), []
        for column in range(first, stop):
            kind = row[column]
            if kind == 0:
                line.append((column, 0))
                continue
            if left[kind] == 0:
                span = next(waiting[kind])
                left[kind] = span.placeholders
                line += [(column, kind)] * span.kept
            left[kind] -= 1
        lines.append(line)
    lefts, rights = zip(*pads, strict=True)
    rows = []
    if any(lefts) or not any(rights) or from_right:
        width = min(lefts) + max(
            len(line) + right for line, right in zip(lines, rights, strict=True)
        )
        for line, right in zip(lines, rights, strict=True):
            left = width - right - len(line)
            rows.append([None] * left + line + [None] * right)
    else:
        width = min(rights) + max(map(len, lines))
        rows = [line + [None] * (width - len(line)) for line in lines]

    def table(of):
        return [[0 if cell is None else of(number, *cell) for cell in row]
                for number, row in enumerate(rows)]  # fmt: skip

    real = [[cell is not None for cell in row] for row in rows]
    columns, visual = table(lambda _, column, kind: column), table(lambda _, column, kind: kind)
    if mask is not None:
        new = table(lambda number, column, kind: mask[number][column])
    else:
        new = None if all(map(all, real)) else table(lambda *_: 1)
    lost = [
        [sum(i.placeholders - i.kept for images in spans.values() for i in images[number])]
        for number in range(len(kinds))
    ]
    return columns, visual, new, real, lost


def draw(seed: int):
    """A batch: prompts with up to 3 images of each of two kinds, padding on any side or none."""
    generator = torch.Generator().manual_seed(seed)

    def below(stop: int) -> int:
        return int(torch.randint(stop, (1,), generator=generator))

    batch, sides = 1 + below(4), below(5)  # none, left, right, both, or without a mask
    keep_all, holes = below(4) == 0, below(3) == 0
    rows, spans = [], {1: [], 2: []}
    for _ in range(batch):
        row = [0] * below(4)
        own = {1: [], 2: []}
        for _ in range(below(4)):
            kind, placeholders = 1 + below(2), 1 + below(6)
            kept = placeholders if keep_all else 1 + below(placeholders + 1)  # or one more
            own[kind].append(ImageSpan(placeholders, kept))
            row += [kind] * placeholders + [0] * below(3)  # images may touch
        row += [0] * (1 + below(3))
        rows.append(row)
        for kind in spans:
            spans[kind].append(own[kind])
    pads = [[below(4) * (sides in (1, 3)), below(4) * (sides in (2, 3))] for _ in rows]
    width = max(sum(pad) + len(row) for pad, row in zip(pads, rows, strict=True))
    kinds, mask = [], []
    for pad, row in zip(pads, rows, strict=True):
        missing = width - sum(pad) - len(row)
        if sides in (0, 4):
            row += [0] * missing
        else:
            pad[0 if sides in (1, 3) else 1] += missing
        ones = [int(not (holes and 0 < place < len(row) - 1 and below(4) == 0))
                for place in range(len(row))]  # fmt: skip
        kinds.append([0] * pad[0] + row + [0] * pad[1])
        mask.append([0] * pad[0] + ones + [0] * pad[1])
    return kinds, None if sides == 4 else mask, spans


def plan_of(kinds, mask, spans, from_right=False):
    mask = None if mask is None else torch.tensor(mask)
    return PromptPlan(torch.tensor(kinds), mask, spans, from_right)


@pytest.mark.parametrize("from_right", [False, True])
@pytest.mark.parametrize("block", range(8))
def test_equals_the_loop_over_tokens(block, from_right):
    for seed in range(50 * block, 50 * block + 50):
        kinds, mask, spans = draw(seed)
        if mask is not None and seed % 10 == 0 and not any(kinds[0]):
            mask[0] = [0] * len(mask[0])  # a row that is nothing but padding stays as it is
        places = {
            kind: torch.zeros(sum(i.kept for row in images for i in row), dtype=torch.long)
            for kind, images in spans.items()
        }
        found = plan_of(kinds, mask, spans, from_right).fill(places)
        columns, visual, new, real, lost = oracle(kinds, mask, spans, from_right)
        assert found.length == len(kinds[0])
        assert found.columns.tolist() == columns, seed
        assert found.visual.tolist() == visual, seed
        assert (found.mask if found.mask is None else found.mask.tolist()) == new, seed
        assert found.real.tolist() == real, seed
        assert found.dropped.tolist() == lost, seed


@pytest.mark.parametrize("seed", range(40))
def test_a_batch_that_loses_nothing_stays_as_it_is(seed):
    kinds, mask, spans = draw(seed)
    spans = {
        kind: [[ImageSpan(i.placeholders, i.placeholders) for i in row] for row in images]
        for kind, images in spans.items()
    }
    everything = {
        kind: torch.tensor([n for row in images for i in row for n in range(i.placeholders)]).long()
        for kind, images in spans.items()
    }
    found = plan_of(kinds, mask, spans).fill(everything)
    length = len(kinds[0])
    own = torch.arange(length).expand(len(kinds), -1)
    assert torch.equal(found.columns, own.masked_fill(~found.real, 0))
    if mask is not None:
        assert found.mask.tolist() == mask


def test_padding_keeps_its_sides_and_answers_stay_where_a_caller_counts():
    # Prompts of 6 padded on the left, answers of 3 padded on the right.
    kinds = [[0, 0, 1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0, 0, 0, 0]]
    mask = [[0, 1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]]
    spans = {1: [[ImageSpan(3, 2)], [ImageSpan(4, 1)]]}
    found = plan_of(kinds, mask, spans).fill({1: torch.tensor([0, 2, 3])})
    assert found.columns.tolist() == [[1, 2, 4, 5, 6, 7, 0], [0, 0, 4, 5, 6, 7, 8]]
    assert found.mask.tolist() == [[1, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1]]


def test_rows_padded_on_the_right_alone_start_together_unless_columns_count_from_the_right():
    kinds, mask = [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]], [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    spans = {1: [[ImageSpan(3, 1)], [ImageSpan(2, 1)]]}
    places = {1: torch.tensor([1, 1])}
    found = plan_of(kinds, mask, spans).fill(places)
    assert found.columns.tolist() == [[1, 3, 4], [1, 2, 3]]
    found = plan_of(kinds, mask, spans, from_right=True).fill(places)
    assert found.columns.tolist() == [[0, 1, 3, 4], [1, 2, 3, 0]]
    assert found.mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 0]]


def test_what_does_not_fit_is_named():
    spans = {1: [[ImageSpan(2, 1)]]}
    with pytest.raises(HiPruneError, match=r"^attention_mask: 0 for image placeholders.*expected"):
        plan_of([[1, 1, 0]], [[0, 1, 1]], spans)
    with pytest.raises(HiPruneError, match=r"^input_ids: \[3\] placeholders.*expected .*\[2\]"):
        plan_of([[1, 1, 1]], None, spans)
