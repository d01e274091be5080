"""Images: read from files, made RGB, and padded as the paper's evaluations hand them over."""

from __future__ import annotations

import codecs
import errno
import logging
import math
import stat
import warnings
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hiprune.errors import HiPruneError

if TYPE_CHECKING:
    from PIL.Image import Image

EXPECTED = "expected a picture with pixels, such as JPEG, PNG or WebP"
LARGE = 50e6  # pixels of a picture that takes long
_ORIENTATION = 0x0112  # of EXIF
logger = logging.getLogger(__name__)


def pad_to_square(image: Image, mean: Sequence[float]) -> Image:
    """Expand an image to a square, the image in the middle of the mean colour.

    The original LLaVA-1.5 does so (``image_aspect_ratio: pad``), while transformers' processor
    crops to the central square: the paper's numbers need the padding.

    Args:
        image: any mode; it comes back as RGB.
        mean: of the processor's normalisation (``image_mean``), 3 numbers from 0 to 1.

    Returns:
        An RGB image whose sides are the longer side of ``image``.

    Raises:
        HiPruneError: a mean of another form.
    """
    from PIL import Image

    if len(mean) != 3 or not all(0 <= value <= 1 for value in mean):
        raise HiPruneError(f"mean={mean!r}: expected 3 numbers from 0 to 1")
    image = image.convert("RGB")
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    # An odd difference leaves the larger margin below, or on the right.
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def open_image(path: str | Path) -> Image:
    """A picture that Pillow reads, as RGB (see :func:`to_rgb`), turned as its camera says.

    Of an animation, or a file of several pages, the first picture. One of more than 50 megapixels
    is told in the log before it is read, which takes long.

    Raises:
        HiPruneError: a picture that cannot be had, with the file and the one reason: missing, not
            a file, not readable, no picture, cut off, broken, too large, without pixels, or with
            values that have no place in 8 bits.
    """
    path = Path(path)
    name = f"IMAGE {path}"
    try:
        file = _opened(path)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise HiPruneError(f"{name}: {_reason(path, error)}; {EXPECTED}") from error
    with file:
        return _read(file, name)


def to_rgb(image: Image, name: str = "image") -> Image:
    """A picture of any mode as RGB: what is transparent shows white, 16 bits become 8.

    Integers of more than 8 bits are taken for 16 bits; floats for 0 to 1, or where one is above 1
    for 0 to 255.

    Raises:
        HiPruneError: values beyond these, where any scale would be a guess.
    """
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _scaled(image, name).convert("RGB")
    transparent = image.mode in ("LA", "PA", "RGBA", "La", "RGBa")
    if not transparent and "transparency" not in image.info:
        return image.convert("RGB")
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)  # from values multiplied by alpha
    image = (image.convert(straight) if straight else image).convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _opened(path: Path) -> BinaryIO:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder is told by open itself
        raise OSError("a pipe, a socket or a device")
    return open(path, "rb")


def _read(file: BinaryIO, name: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Of sizes above half of what Pillow refuses; ours is said from 50 megapixels on.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(file)
        width, height = picture.size
        if width * height > LARGE:
            logger.warning(
                "%s: %d x %d, %.0f megapixels: to read and resize it takes long",
                name, width, height, width * height / 1e6,
            )  # fmt: skip
        picture.load()
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        message = f"{name}: too large ({_line(error)}); expected at most {limit} pixels"
        raise HiPruneError(message) from error
    except UnidentifiedImageError as error:
        raise HiPruneError(f"{name}: {_content(file)}; {EXPECTED}") from error
    # Pillow's readers raise nearly anything on files that are made up.
    except Exception as error:
        cut = isinstance(error, (OSError, EOFError)) and "truncated" in str(error)
        reason = "cut off" if cut else "broken"
        raise HiPruneError(f"{name}: {reason} ({_line(error)}); {EXPECTED}") from error
    if 0 in picture.size:
        raise HiPruneError(f"{name}: {width} x {height} pixels; {EXPECTED}")
    return to_rgb(_turned(picture, name), name)


def _turned(picture: Image, name: str) -> Image:
    """As EXIF says; a picture whose EXIF is broken is whole, and stays as it lies."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(picture.getexif().get(_ORIENTATION))
    except Exception as error:
        logger.warning("%s: EXIF unreadable (%s), so it is not turned", name, _line(error))
        turn = None
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    turned.info.update(picture.info)  # its transparency
    return turned


def _scaled(image: Image, name: str) -> Image:
    """Integers and floats beyond 8 bits as mode L."""
    if image.mode != "F":
        image = image.convert("I")  # 32 bits, of either order of bytes
    low, high = image.getextrema()
    limit = 65535 if image.mode == "I" else 1 if high <= 1 else 255
    # A NaN is no extreme: it is the one value that differs from itself.
    if not (low >= 0 and high <= limit) or (image.mode == "F" and _has_nan(image)):
        expected = "0 to 65535" if image.mode == "I" else "0 to 1, or 0 to 255, and no NaN"
        raise HiPruneError(
            f"{name}: mode {image.mode}, values from {low:g} to {high:g}; expected {expected}"
        )
    scale = 255 / limit
    return image.point(lambda value: value * scale + 0.5).convert("L")


def _has_nan(image: Image) -> bool:
    return any(map(math.isnan, array("f", image.tobytes())))


def _reason(path: Path, error: Exception) -> str:
    """Why a path is no file that can be read."""
    number = getattr(error, "errno", None)
    if number == errno.ENOENT and path.is_symlink():
        return f"a link to {path.readlink()}, which is not there"
    known = {
        errno.ENOENT: "no such file",
        errno.ENOTDIR: "no such file",
        errno.EISDIR: "a folder",
        errno.ELOOP: "a loop of links",
        errno.EACCES: "not readable (permission denied)",
        errno.EPERM: "not readable (permission denied)",
    }
    return known.get(number, f"not readable ({_line(error)})")


def _content(file: BinaryIO) -> str:
    """What a file holds that no reader of Pillow takes for a picture."""
    file.seek(0)
    start = file.read(64)
    if not start:
        return "an empty file"
    try:
        # A character may be cut at the end of what was read.
        text = codecs.getincrementaldecoder("utf-8")().decode(start).strip()
    except UnicodeDecodeError:
        text = ""
    if text and all(letter.isprintable() or letter.isspace() for letter in text):
        return f"a text that begins with {text.splitlines()[0][:40]!r}, no picture"
    return f"of no format that Pillow reads (it begins with {start[:8]!r})"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
