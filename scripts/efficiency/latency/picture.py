"""The picture that is encoded: a file, or one made from a seed."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError

from scripts.efficiency.latency.errors import BenchError


def read_picture(file: Path) -> Image.Image:
    """As RGB.

    Raises:
        BenchError: no such file, or not an image.
    """
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise BenchError(f"image={str(file)!r}: {error}; expected a file with an image") from error


def make_picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Smooth coloured blobs of (width, height) pixels; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(coarse.numpy()).resize(size, Image.Resampling.BICUBIC)
