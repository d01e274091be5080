"""Left-padded prompts with right-padded answers, in preference training: as each row alone."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

import hiprune
from hiprune import HiPruneConfig

pytestmark = pytest.mark.skipif(
    find_spec("llava") is not None, reason="needs transformers 5.17 or newer"
)
ANSWERS = [[20, 21, 22, 23], [24, 25, 0, 0]]
FAMILIES = {"llava": (36, 12, 3), "llava_next": (None, 60, 3), "qwen": (1.0, 0.334, 4)}


def case(family: str):
    """A model and its arguments: two prompts, an image each, of other lengths, with answers."""
    if family == "qwen":
        from qwen_models import inputs, load

        model, arguments = load(), inputs([1, 1])
    else:
        from llava_hf_models import inputs, load

        model, arguments = load(family), inputs(family, [1, 1])
    answers = torch.tensor(ANSWERS)
    more = {"input_ids": answers, "attention_mask": (answers > 0).long()}
    more["mm_token_type_ids"] = torch.zeros_like(answers, dtype=torch.int32)
    for name, columns in more.items():
        if name in arguments:
            arguments[name] = torch.cat([arguments[name], columns], dim=1)
    mask = arguments["attention_mask"]
    assert (mask[:, 0] == 0).any() and (mask[:, -1] == 0).any()
    return model, arguments


def alone(arguments: dict, row: int) -> dict:
    """The prompt of one row and its image, without padding."""
    real = arguments["attention_mask"][row].bool()
    names = ("input_ids", "attention_mask", "mm_token_type_ids")
    found = {name: arguments[name][row : row + 1, real] for name in names if name in arguments}
    if "image_grid_thw" in arguments:
        grid = arguments["image_grid_thw"]
        found["image_grid_thw"] = grid[row : row + 1]
        found["pixel_values"] = arguments["pixel_values"].split(grid.prod(dim=1).tolist())[row]
    else:
        for name in ("pixel_values", "image_sizes"):
            if name in arguments:
                found[name] = arguments[name][row : row + 1]
    return found


@torch.no_grad()
def logits(model, arguments, **more):
    return model(**arguments, **more).logits


@pytest.mark.parametrize("to_keep", [0, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_is_as_it_is_alone(family, to_keep):
    model, arguments = case(family)
    _, retention, layer = FAMILIES[family]
    with hiprune.prune(model, HiPruneConfig(retention, alpha=0.5, object_layer=layer)):
        together = logits(model, arguments, logits_to_keep=to_keep)
        rows = [logits(model, alone(arguments, row))[0] for row in range(2)]
    for row, expected in enumerate(rows):
        padding = ANSWERS[row].count(0)  # stays where it was, on the right
        found = together[row, : together.shape[1] - padding]
        length = min(len(expected), to_keep - padding if to_keep else len(expected))
        torch.testing.assert_close(found[-length:], expected[-length:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_keeping_everything_changes_nothing(family):
    model, arguments = case(family)
    everything, _, layer = FAMILIES[family]
    expected = logits(model, arguments)
    with hiprune.prune(model, HiPruneConfig(everything, alpha=0.5, object_layer=layer)):
        found = logits(model, arguments)
    real = arguments["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real])
