"""Scores of every block of Qwen2.5-VL's tower, and of a patched LLaVA's, beside the whole maps."""

from __future__ import annotations

import pytest
import torch
import transformers

from hiprune import HiPruneConfig, HiPruneError, prune
from hiprune.figures.maps import maps_and_features, received_attention_maps

if int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("transformers' own models need transformers 5", allow_module_level=True)

import llava_hf_models as llava
import qwen_models as qwen
from encoder_models import hooks


@torch.no_grad()
def qwen_by_hand(grid: tuple[int, int], pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, N) scores of the object block and the last one, and (N, C) features, by whole maps."""
    model = qwen.load()
    features, maps = qwen.attention_maps(model, pixels, (1, *grid))
    order = torch.tensor(qwen.window_order(grid))
    scores = []
    for number in (qwen.OBJECT_LAYER, qwen.BLOCKS):
        received = maps[number].mean(dim=(0, 1)).view(-1, qwen.MERGE**2).mean(dim=1)
        raster = torch.empty_like(received)
        raster[order] = received
        scores.append(raster)
    return torch.stack(scores), features


@pytest.mark.parametrize("number", range(len(qwen.GRIDS)))
def test_qwen_scores_within_windows_in_raster_order(number, monkeypatch):
    grid, visual = qwen.GRIDS[number], qwen.load().model.visual
    pixels = qwen.pixels(grid, number)
    before = hooks(visual), dict(vars(visual))
    maps, features = maps_and_features(visual, pixels, grid_thw=torch.tensor([[1, *grid]]))
    assert maps.shape == (qwen.BLOCKS, 1, grid[0] * grid[1] // 4)
    assert (hooks(visual), dict(vars(visual))) == before
    for objects in (qwen.OBJECT_LAYER, 2):  # block 2 attends within windows
        monkeypatch.setattr(qwen, "OBJECT_LAYER", objects)
        expected, expected_features = qwen_by_hand(grid, pixels)
        torch.testing.assert_close(
            maps[[objects - 1, -1], 0], expected.float(), rtol=1e-4, atol=1e-7
        )
    torch.testing.assert_close(features[0], expected_features)


def test_qwen_images_and_frames_of_one_grid():
    grid, visual = qwen.GRIDS[0], qwen.load().model.visual
    images = [qwen.pixels(grid, number) for number in range(3)]
    grids = torch.tensor([[1, *grid], [2, *grid]])  # an image, and two frames of a video
    maps = received_attention_maps(visual, torch.cat(images), grid_thw=grids)
    alone = [
        received_attention_maps(visual, image, grid_thw=torch.tensor([[1, *grid]]))
        for image in images
    ]
    torch.testing.assert_close(maps, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-7)


def test_qwen_misuse_is_named():
    model = qwen.load()
    visual, pixels = model.model.visual, qwen.pixels(qwen.GRIDS[0], 0)
    grids = torch.tensor([[1, *qwen.GRIDS[0]], [1, *qwen.GRIDS[1]]])
    with pytest.raises(HiPruneError, match="grid_thw=None"):
        received_attention_maps(visual, pixels)
    with pytest.raises(HiPruneError, match="one by one"):
        received_attention_maps(visual, pixels, grid_thw=grids)
    assert hooks(visual) == 0


def test_a_patched_qwen_has_the_maps_of_the_unpatched_one():
    model, (grid, *_) = qwen.load(), qwen.GRIDS
    visual, pixels = model.model.visual, qwen.pixels(grid, 0)
    expected = maps_and_features(visual, pixels, grid_thw=torch.tensor([[1, *grid]]))
    with prune(model, HiPruneConfig(retention=0.5, object_layer=4)):
        found = maps_and_features(visual, pixels, grid_thw=torch.tensor([[1, *grid]]))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert hooks(visual) == 0


def test_a_patched_llava_has_the_maps_that_its_selection_came_from():
    model, arguments = llava.load("llava"), llava.inputs("llava", [1])
    pixels = arguments["pixel_values"]
    with prune(model, llava.config(18)) as pruned:
        pruned.encode_images(pixels)
        chosen = pruned.selections[0]
        maps = received_attention_maps(model.model.vision_tower, pixels)[:, 0]
    objects, outputs = maps[llava.OBJECT_LAYER - 1], maps[llava.OUTPUT_LAYER - 1]
    outputs = outputs.masked_fill(chosen.anchor[0] | chosen.buffer[0], -1)
    for mask, scores in ((chosen.anchor, objects), (chosen.register, outputs)):
        best = scores.topk(int(mask.sum())).indices
        assert torch.equal(mask[0].nonzero()[:, 0], best.sort().values)
