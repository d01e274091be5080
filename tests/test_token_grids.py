"""Where tokens lie: what processors make of non-square images, beside the grids' boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hiprune import HiPruneError
from hiprune.figures.token_grids import (
    anyres_grids,
    cropped_box,
    padded_box,
    single_grid,
    whole_box,
)

if int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("transformers' own models need transformers 5", allow_module_level=True)

import llava_hf_models as llava
import qwen_models as qwen
from hiprune.models.pictures import picture

SIDE = llava.PIXELS  # 84
IMAGES = [(160, 100), (100, 160), (120, 120), (413, 97), (61, 244), (75, 50)]


def photo(size: tuple[int, int]) -> Image.Image:
    """Smooth colours that differ everywhere: no place can be taken for another."""
    noise = np.random.default_rng(size[0]).uniform(0, 255, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def cut(image: Image.Image, box: tuple, pixels: tuple[int, int]) -> np.ndarray:
    """(h, w, 3): what lies in a box of an image, black beyond it, at so many pixels."""
    image = image.convert("RGBA")
    found = image.transform(
        pixels, Image.Transform.EXTENT, box, Image.Resampling.BICUBIC, fillcolor=(0, 0, 0, 0)
    )
    return np.asarray(found, np.float32)


def seen(processor, pixels: torch.Tensor) -> np.ndarray:
    """(3, h, w) normalised -> (h, w, 3) from 0 to 255."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (processor.image_mean, processor.image_std))
    return (pixels * std + mean).mul(255).permute(1, 2, 0).numpy()


def assert_same_picture(expected: np.ndarray, found: np.ndarray) -> None:
    """Where the box holds image, the tower saw that; resampling differs by a few grey levels."""
    there = expected[..., 3] > 250
    inner = np.pad(there, 2)  # at its edge, resampling mixes image and padding
    for axis in (0, 1):
        inner &= np.roll(inner, 2, axis) & np.roll(inner, -2, axis)
    there = inner[2:-2, 2:-2]
    assert there.mean() > 0.1
    difference = np.abs(expected[..., :3] - found)[there]
    assert difference.mean() < 4
    assert np.quantile(difference, 0.98) < 16


def llava_processor():
    size = {"shortest_edge": SIDE}
    return transformers.CLIPImageProcessor(size=size, crop_size={"height": SIDE, "width": SIDE})


def next_processor():
    return transformers.LlavaNextImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=llava.load("llava_next").config.image_grid_pinpoints,
    )


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("size", IMAGES)
def test_llava_sees_what_lies_in_the_box(size, pad):
    processor, image = llava_processor(), photo(size)
    made = picture(llava.load("llava"), processor, image, pad=pad)
    (grid,) = made.grids
    assert (grid.rows, grid.columns) == (llava.SIDE, llava.SIDE)
    assert_same_picture(cut(image, grid.box, (SIDE, SIDE)), seen(processor, made.pixels[0]))
    left, top, right, bottom = grid.box
    assert right - left == pytest.approx(bottom - top, rel=0.03)
    assert right - left == pytest.approx(max(size) if pad else min(size), rel=0.03)


@pytest.mark.parametrize("size", IMAGES)
def test_llava_next_sees_its_views_where_the_grids_say(size):
    processor, image = next_processor(), photo(size)
    made = picture(llava.load("llava_next"), processor, image)
    base, grid = made.grids
    views = made.pixels[0]
    assert_same_picture(cut(image, base.box, (SIDE, SIDE)), seen(processor, views[0]))

    # Every patch of the merged picture, put where the grid's order says that its token lies
    patches = views.unflatten(3, (llava.SIDE, 14)).unflatten(2, (llava.SIDE, 14))
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (V, N, 3, 14, 14)
    laid = grid.values(patches).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    width, height = 14 * grid.columns, 14 * grid.rows
    assert laid.shape == (3, height, width)
    assert_same_picture(cut(image, grid.box, (width, height)), seen(processor, laid))


def test_all_kinds_of_grids_were_seen():
    made = [picture(llava.load("llava_next"), next_processor(), photo(size)) for size in IMAGES]
    assert len({made.grids[1].name for made in made}) >= 4
    assert "grid of 1 x 3 views" in {made.grids[1].name for made in made}


@pytest.mark.parametrize("size", IMAGES[:3])
def test_qwen_sees_the_whole_image(size):
    processor = transformers.Qwen2VLImageProcessor(
        patch_size=qwen.PATCH, merge_size=qwen.MERGE, min_pixels=64, max_pixels=10**6
    )
    image = photo(size)
    made = picture(qwen.load(), processor, image)
    (grid,) = made.grids
    assert (grid.rows, grid.columns) == (round(size[1] / 8), round(size[0] / 8))
    side = qwen.PATCH * qwen.MERGE
    # Patches of a token stand together: (rows, columns, 2, 2, 3, frames, 4, 4)
    tokens = made.pixels.view(1, grid.rows * grid.columns, 2, 2, 3, 2, qwen.PATCH, qwen.PATCH)
    laid = grid.values(tokens)[..., 0, :, :].permute(4, 0, 2, 5, 1, 3, 6)
    laid = laid.reshape(3, side * grid.rows, side * grid.columns)
    width, height = laid.shape[2], laid.shape[1]
    assert_same_picture(cut(image, grid.box, (width, height)), seen(processor, laid))


def test_boxes_by_hand():
    assert whole_box((30, 20)) == (0, 0, 30, 20)
    assert padded_box((30, 20)) == (0, -5, 30, 25)
    assert padded_box((20, 31)) == (-5, 0, 26, 31)  # the larger margin on the right
    assert cropped_box((30, 20), 40, (40, 40)) == (5, 0, 25, 20)
    assert cropped_box((20, 30), 40, (40, 40)) == (0, 5, 20, 25)
    base, grid = anyres_grids((100, 50), (2, 2), side=40, columns=2)
    assert (base.box, grid.box) == ((0, 0, 100, 50), (0, -25, 100, 75))
    assert grid.order.tolist() == [4, 5, 8, 9, 6, 7, 10, 11, 12, 13, 16, 17, 14, 15, 18, 19]
    _, grid = anyres_grids((50, 100), (1, 3), side=40, columns=1)  # 20 of 120 pixels wide
    assert grid.box == (-125, 0, 175, 100)
    assert grid.order.tolist() == [1, 2, 3]


def test_values_of_a_grid():
    grid = single_grid(2, 3, (0, 0, 3, 2))
    assert grid.values(torch.arange(6)[None]).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_refusals():
    with pytest.raises(HiPruneError, match="at least 1"):
        anyres_grids((0, 10), (1, 2), 84, 6)
    processor = llava_processor()
    processor.do_center_crop = False
    with pytest.raises(HiPruneError, match="do_center_crop=False"):
        picture(llava.load("llava"), processor, photo((20, 30)))
