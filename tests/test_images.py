"""Pictures of every kind opened as RGB; pad_to_square."""

from __future__ import annotations

import logging
import math
import struct
import warnings
from array import array

import pytest

pytest.importorskip("PIL")

from PIL import Image

from hiprune import HiPruneError
from hiprune.images import open_image, pad_to_square, to_rgb

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


# open_image: what comes out of every kind of picture.

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CORNERS = {(0, 0): RED, (5, 0): GREEN, (0, 3): BLUE, (5, 3): WHITE}


def corners() -> Image.Image:
    """6 x 4, a colour in each corner."""
    image = Image.new("RGB", (6, 4), (9, 9, 9))
    for place, colour in CORNERS.items():
        image.putpixel(place, colour)
    return image


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_rotation_is_applied(turn, kind, tmp_path):
    """A camera that lies as ``turn`` says stores the scene turned back."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = corners().transpose(back[turn]) if turn in back else corners()
    exif = Image.Exif()
    exif[0x0112] = turn
    stored.save(tmp_path / f"x.{kind}", exif=exif, **({"lossless": True} if kind == "webp" else {}))
    opened = open_image(tmp_path / f"x.{kind}")
    assert (opened.mode, opened.size) == ("RGB", (6, 4))
    assert opened.tobytes() == corners().tobytes()


def test_broken_exif_is_told_and_the_picture_opened(tmp_path, caplog, monkeypatch):
    def broken(_):
        raise struct.error("unpack requires a buffer of 2 bytes")

    corners().save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "getexif", broken)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.getexif", broken)
    with caplog.at_level(logging.WARNING, "hiprune"):
        opened = open_image(tmp_path / "x.png")
    assert opened.tobytes() == corners().tobytes()
    (told,) = caplog.records
    assert told.getMessage() == (
        f"IMAGE {tmp_path / 'x.png'}: EXIF unreadable (unpack requires a buffer of 2 bytes), so it "
        "is not turned"
    )


def _palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    if transparent:
        image.info["transparency"] = 1
    return image


def _keyed(mode: str, colour, other) -> Image.Image:
    """One colour of a picture without alpha counts as transparent."""
    image = Image.new(mode, (2, 1), colour)
    image.putpixel((1, 0), other)
    image.info["transparency"] = other
    return image


def _two(mode: str, first, second) -> Image.Image:
    image = Image.new(mode, (2, 1), first)
    image.putpixel((1, 0), second)
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (_two("1", 0, 1), [(0, 0, 0), WHITE]),
        (_two("L", 7, 200), [(7, 7, 7), (200, 200, 200)]),
        (_two("LA", (7, 255), (7, 0)), [(7, 7, 7), WHITE]),
        (_two("La", (7, 255), (0, 0)), [(7, 7, 7), WHITE]),
        (_two("RGBA", (*RED, 255), (*RED, 0)), [RED, WHITE]),
        (_two("RGBA", (*RED, 128), (0, 0, 0, 0)), [(255, 127, 127), WHITE]),
        (_two("RGBa", (*RED, 255), (0, 0, 0, 0)), [RED, WHITE]),
        (_palette(False), [RED, BLUE]),
        (_palette(True), [RED, WHITE]),
        (_palette(True).convert("PA"), [RED, WHITE]),
        (_keyed("L", 3, 200), [(3, 3, 3), WHITE]),
        (_keyed("RGB", RED, BLUE), [RED, WHITE]),
        (_two("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), [RED, BLUE]),
        (_two("HSV", (0, 255, 255), (0, 0, 255)), [RED, WHITE]),
        (_two("YCbCr", (255, 128, 128), (0, 128, 128)), [WHITE, (0, 0, 0)]),
        (_two("I;16", 0, 65535), [(0, 0, 0), WHITE]),
        (_two("I;16", 257 * 100, 257 * 101 - 100), [(100,) * 3, (101,) * 3]),  # rounded
        (_two("I;16B", 257, 65535), [(1, 1, 1), WHITE]),
        (_two("I", 257 * 9, 65535), [(9, 9, 9), WHITE]),
        (_two("F", 0.0, 1.0), [(0, 0, 0), WHITE]),
        (_two("F", 0.5, 0.2), [(128,) * 3, (51,) * 3]),
        (_two("F", 7.0, 200.4), [(7, 7, 7), (200, 200, 200)]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_rgb(image, expected):
    found = to_rgb(image)
    assert found.mode == "RGB"
    assert [found.getpixel((x, 0)) for x in range(2)] == expected


@pytest.mark.parametrize(
    ("mode", "values", "message"),
    [
        ("I", (-1, 5), "image: mode I, values from -1 to 5; expected 0 to 65535"),
        ("I", (0, 65536), "mode I, values from 0 to 65536; expected 0 to 65535"),
        ("F", (-0.5, 0.5), "mode F, values from -0.5 to 0.5; expected 0 to 1, or 0 to 255"),
        ("F", (0.0, 256.0), "mode F, values from 0 to 256; expected 0 to 1, or 0 to 255"),
        ("F", (0.5, math.nan), "expected 0 to 1, or 0 to 255, and no NaN"),
        ("F", (math.inf, 0.5), "values from 0.5 to inf; expected"),
    ],
)
def test_values_that_no_scale_fits(mode, values, message):
    image = Image.frombytes(mode, (2, 1), array({"I": "i", "F": "f"}[mode], values).tobytes())
    with pytest.raises(HiPruneError, match=message):
        to_rgb(image)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (_two("I;16", 0, 65535), "png", [(0, 0, 0), WHITE]),
        (_two("I;16", 0, 65535), "tiff", [(0, 0, 0), WHITE]),
        (_two("F", 0.0, 1.0), "tiff", [(0, 0, 0), WHITE]),
        (_two("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), "tiff", [RED, BLUE]),
        (_two("LA", (7, 255), (7, 0)), "png", [(7, 7, 7), WHITE]),
        (_keyed("RGB", RED, BLUE), "png", [RED, WHITE]),
        (_palette(True), "png", [RED, WHITE]),
        (_palette(True), "gif", [RED, WHITE]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_files_of_these_modes(image, kind, expected, tmp_path):
    image.save(tmp_path / f"x.{kind}")
    found = open_image(str(tmp_path / f"x.{kind}"))
    assert [found.getpixel((x, 0)) for x in range(2)] == expected


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_the_first_picture_of_several(kind, tmp_path):
    first, *others = (Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE))
    options = {"lossless": True} if kind == "webp" else {}
    first.save(tmp_path / f"x.{kind}", save_all=True, append_images=others, **options)
    with Image.open(tmp_path / f"x.{kind}") as whole:
        assert whole.n_frames == 3
    assert set(open_image(tmp_path / f"x.{kind}").get_flattened_data()) == {RED}


def test_more_than_50_megapixels_are_told(tmp_path, caplog):
    """Also where Pillow would warn in words of its own, between half its limit and the limit."""
    Image.new("1", (10_000, 5_000)).save(tmp_path / "x.png")
    Image.new("1", (10_000, 5_001)).save(tmp_path / "y.png")
    Image.new("1", (10_000, 9_000)).save(tmp_path / "z.png")
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "hiprune"):
        warnings.simplefilter("error")
        for name in ("x", "y", "z"):
            open_image(tmp_path / f"{name}.png")
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"IMAGE {tmp_path / name}: 10000 x {size} megapixels: to read and resize it takes long"
        for name, size in (("y.png", "5001, 50"), ("z.png", "9000, 90"))
    ]
