"""Images: read from files, and padded as the paper's evaluations hand them to a processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hiprune.errors import HiPruneError

if TYPE_CHECKING:
    from PIL.Image import Image


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


def open_image(path: Path) -> Image:
    """Any picture that Pillow reads, as RGB and turned as its camera says.

    Raises:
        HiPruneError: no file, no picture, or one without pixels.
    """
    from PIL import Image, ImageOps

    expected = "expected a picture with pixels, such as JPEG, PNG or WebP"
    if not path.is_file():
        raise HiPruneError(f"IMAGE {path}: no such file; {expected}")
    try:
        with Image.open(path) as picture:
            image = ImageOps.exif_transpose(picture).convert("RGB")
    # Pillow's readers raise nearly anything on files that are cut off or made up.
    except Exception as error:
        if path.stat().st_size == 0:
            raise HiPruneError(f"IMAGE {path}: an empty file; {expected}") from error
        reason = "too large" if isinstance(error, Image.DecompressionBombError) else "unreadable"
        raise HiPruneError(f"IMAGE {path}: {reason} ({error}); {expected}") from error
    if 0 in image.size:
        raise HiPruneError(f"IMAGE {path}: {image.size[0]} x {image.size[1]} pixels; {expected}")
    return image
