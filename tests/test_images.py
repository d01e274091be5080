"""pad_to_square: size, place and colour."""

from __future__ import annotations

import pytest

pytest.importorskip("PIL")

from PIL import Image

from hiprune import HiPruneError
from hiprune.images import pad_to_square

MEAN = (0.48145466, 0.4578275, 0.40821073)
COLOUR = (122, 116, 104)  # CLIP's mean, cut to integers


@pytest.mark.parametrize(
    ("size", "corner"),
    [((7, 4), (0, 1)), ((4, 7), (1, 0)), ((8, 4), (0, 2)), ((5, 5), (0, 0)), ((1, 100), (49, 0))],
)
def test_place_and_colour(size, corner):
    image = Image.new("RGB", size, (255, 0, 0))
    square = pad_to_square(image, MEAN)
    assert square.size == (max(size), max(size))
    for x in range(square.width):
        for y in range(square.height):
            inside = 0 <= x - corner[0] < size[0] and 0 <= y - corner[1] < size[1]
            assert square.getpixel((x, y)) == ((255, 0, 0) if inside else COLOUR)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(mode):
    assert pad_to_square(Image.new(mode, (4, 2)), MEAN).mode == "RGB"


def test_it_is_what_the_original_does():
    utils = pytest.importorskip("llava.mm_utils")
    image = Image.effect_noise((31, 18), 50).convert("RGB")
    expected = utils.expand2square(image, tuple(int(value * 255) for value in MEAN))
    assert pad_to_square(image, MEAN).tobytes() == expected.tobytes()


@pytest.mark.parametrize("mean", [(0.5, 0.5), (122, 116, 104)])
def test_a_mean_of_another_form(mean):
    with pytest.raises(HiPruneError, match="mean="):
        pad_to_square(Image.new("RGB", (2, 1)), mean)
