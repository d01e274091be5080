"""Pictures that a user names: read, or refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hiprune import HiPruneError

if TYPE_CHECKING:
    from PIL.Image import Image


def open_image(path: Path) -> Image:
    """Any picture that Pillow reads, as RGB and turned as its camera says.

    Raises:
        HiPruneError: no file, no picture, or one without pixels.
    """
    from PIL import Image, ImageOps

    accepted = "accepted is a picture with pixels, such as JPEG, PNG or WebP"
    if not path.is_file():
        raise HiPruneError(f"IMAGE {path}: no such file; {accepted}")
    try:
        with Image.open(path) as picture:
            image = ImageOps.exif_transpose(picture).convert("RGB")
    # Pillow's readers raise nearly anything on files that are cut off or made up.
    except Exception as error:
        if path.stat().st_size == 0:
            raise HiPruneError(f"IMAGE {path}: an empty file; {accepted}") from error
        reason = "too large" if isinstance(error, Image.DecompressionBombError) else "unreadable"
        raise HiPruneError(f"IMAGE {path}: {reason} ({error}); {accepted}") from error
    if 0 in image.size:
        raise HiPruneError(f"IMAGE {path}: {image.size[0]} x {image.size[1]} pixels; {accepted}")
    return image
