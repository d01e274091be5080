"""One picture for every family: pixels, grids and maps fit each other and what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="needs the environment .venv-qwen")

import qwen3_models
import views_models
from hiprune.models.pictures import picture
from PIL import Image
from transformers import (
    GotOcr2ImageProcessor,
    LlavaOnevisionImageProcessor,
    Qwen2VLImageProcessor,
    VideoLlavaImageProcessor,
)

import hiprune
from hiprune import HiPruneConfig, select_tokens
from hiprune.show.__main__ import draw
from hiprune.show.checkpoints import find_checkpoint
from scripts.bench.checkpoint import of_checkpoint
from scripts.benchmarks import BENCHMARKS

pytestmark = pytest.mark.usefixtures("one_thread")


def processor(family):
    if family == "internvl":
        return GotOcr2ImageProcessor(size={"height": 84, "width": 84}, max_patches=6)
    if family == "llava_onevision":
        pinpoints = [[70 * rows, 70 * columns] for rows, columns in views_models.GRIDS]
        size = {"height": 70, "width": 70}
        return LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints)
    if family == "video_llava":
        crop = {"height": 70, "width": 70}
        return VideoLlavaImageProcessor(size={"shortest_edge": 70}, crop_size=crop)
    limits = {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 40}
    return Qwen2VLImageProcessor(patch_size=4, merge_size=2, temporal_patch_size=2, size=limits)


def case(family):
    module = qwen3_models if family.startswith("qwen") else views_models
    noise = np.random.default_rng(3).integers(0, 256, (60, 130, 3), dtype=np.uint8)
    return module.load(family), processor(family), Image.fromarray(noise)


@pytest.mark.parametrize(
    "family", ["qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "internvl", "llava_onevision", "video_llava"]
)
def test_what_is_kept_follows_from_the_maps_on_the_grids(family):
    model, image_processor, image = case(family)
    made = picture(model, image_processor, image)
    config = HiPruneConfig(retention=0.5, alpha=0.5, object_layer=2)
    with hiprune.prune(model, config) as pruned:
        pruned.encode_images(made.pixels, made.sizes)
    (selection,) = pruned.selections
    maps = hiprune.received_attention_maps(made.tower, made.views, **made.tower_inputs)
    maps = made.token_maps(maps)  # (layers, V, N)
    assert maps.shape == (made.layers, *selection.keep.shape)
    columns = made.grids[-1].columns if len(made.grids) == 2 else made.grids[0].columns
    if family == "llava_onevision":
        columns = made.grids[0].columns  # the base view comes first
    expected = select_tokens(
        maps[1], maps[made.output_layer - 1],
        columns=columns, budget=selection.indices.shape[1], alpha=0.5,
    )  # fmt: skip
    assert torch.equal(selection.indices, expected.indices)
    covered = torch.cat([grid.order for grid in made.grids])
    assert sorted(covered.tolist()) == list(range(selection.keep.numel()))
    for grid in made.grids:
        assert grid.values(selection.keep).shape == (grid.rows, grid.columns)


def test_internvls_tiles_lie_where_they_were_cut():
    """A bright corner is in the last tile's corner of the grid."""
    model, image_processor, _ = case("internvl")
    pixels = np.zeros((84, 168, 3), dtype=np.uint8)
    pixels[70:, 154:] = 255
    made = picture(model, image_processor, Image.fromarray(pixels))
    tiles, thumbnail = made.grids
    assert (tiles.rows % 3, tiles.columns, thumbnail.rows) == (0, 2 * tiles.rows, 3)
    bright = made.pixels.mean(dim=1).unflatten(1, (3, -1)).unflatten(3, (3, -1)).mean(dim=(2, 4))
    seen = tiles.values(bright.flatten(1))  # (V, N) -> the grid
    assert seen.argmax() == seen.numel() - 1
    assert thumbnail.values(bright.flatten(1)).argmax() == 8


def test_a_figure_of_internvl():
    figure, lines = draw(*case("internvl"), HiPruneConfig(0.5, alpha=0.5, object_layer=2))
    assert lines[0].startswith("12 of 27 tokens kept"), (
        "a half of each tile's 9 tokens, rounded down"
    )
    assert figure.axes


@pytest.mark.parametrize(
    ("family", "variable"),
    [
        ("qwen2_vl", "HIPRUNE_QWEN_RETENTION"),
        ("qwen3_vl", "HIPRUNE_QWEN_RETENTION"),
        ("qwen3_vl_moe", "HIPRUNE_QWEN_RETENTION"),
        ("internvl", "HIPRUNE_RETENTION"),
        ("llava_onevision", "HIPRUNE_RETENTION"),
        ("video_llava", "HIPRUNE_RETENTION"),
    ],
)
def test_a_checkpoint_is_known_by_its_configuration(family, variable, tmp_path):
    """CKPT of the benchmarks, and --model of show_tokens.py."""
    model, _, _ = case(family)
    config = type(model.config)(**model.config.to_dict())
    config.architectures = [type(model).__name__]
    config.save_pretrained(tmp_path)
    name = family.removesuffix("_moe")
    found = find_checkpoint(str(tmp_path))
    assert (found.description.family.name, found.description.layers) == (name, 4)
    made = of_checkpoint(BENCHMARKS["qwen2_5_vl"], str(tmp_path))
    assert (made.family, made.model, made.object_layer) == (name, "hiprune_hf", 2)
    assert made.retention_variable == variable
    shares = (8, 6, 3) if family == "video_llava" else (0.333, 0.222, 0.111)
    assert made.retentions == shares
