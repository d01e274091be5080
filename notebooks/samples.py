"""The images that a notebook draws: the user's, COCO's, generated scenes, or photos of packages.

All are cut to their central square, so that every encoder sees the whole of what is shown.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from paths import shown, variable
from PIL import Image, ImageDraw
from torch import Tensor

from hiprune import HiPruneError
from hiprune.images import open_image

if TYPE_CHECKING:
    from hiprune.figures.token_grids import TokenGrid

# Package -> its photos of things, in the order in which they are taken.
PHOTOS = {
    "skimage/data": ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
}
MORE_PHOTOS = {"skimage/data": ("motorcycle_left.png", "camera.png", "coins.png")}
# Of COCO val2017, in a folder of the user's.
ANNOTATIONS, IMAGES = Path("annotations") / "instances_val2017.json", "val2017"
SEED = 7  # of the scenes; training and the tiny task have other ones
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Sample:
    """A square image, and which of its pixels belong to objects, where that is known."""

    name: str
    image: Image.Image
    mask: Tensor | None = None  # (S, S) bool


@dataclass(frozen=True)
class Samples:
    """Images of one source.

    Attributes:
        source: what they are, with their number, for captions.
        images: the images.
    """

    source: str
    images: Sequence[Sample]

    def __iter__(self):
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return self.images[index]


def find_samples(
    family: str | None,
    folder: str | None,
    count: int,
    coco: str | None = None,
    masks: bool = False,
) -> Samples:
    """Images for an encoder.

    COCO's, if the caller says so; the user's folder; COCO's, if the variable COCO is set; else what
    the encoder was trained on: generated scenes for this repository's towers, photos for others.

    Args:
        family: whose generated scenes the encoder was trained on; None: it was on photos.
        folder: of the user's pictures.
        count: at most so many.
        coco: folder with COCO's ``val2017/`` and ``annotations/instances_val2017.json``.
        masks: only images with masks: COCO's, or scenes for every encoder.
    """
    if folder and not masks and not coco:
        return _pictures(_in_folder(Path(folder))[:count], "of yours")
    coco = coco or variable("COCO")
    if coco:
        found = list(read_coco(Path(coco), count))
        return Samples(f"{_number(len(found), 'image')} of COCO val2017", found)
    if masks or family:
        return scenes(family or "qwen2_5_vl", count)
    return _pictures(_photos()[:count], "of scikit-image and scikit-learn", "photo")


def scenes(family: str, count: int) -> Samples:
    """Generated ones, with the masks of all their things together."""
    from scripts.tiny.scenes import DRAWINGS, make_scene

    drawing = DRAWINGS[family]
    found = []
    for index in range(count):
        scene = make_scene(SEED, index, drawing.side, drawing.sizes)
        mask = torch.from_numpy(scene.masks.any(axis=0))
        found.append(Sample(f"scene {index}", Image.fromarray(scene.image), mask))
    source = f"{_number(count, 'generated scene')} ({drawing.side} pixels, seed {SEED})"
    return Samples(source, found)


def read_coco(folder: Path, count: int) -> Iterator[Sample]:
    """The first images, by their number, that show an object in their central square.

    Raises:
        HiPruneError: a folder without them.
    """
    file = folder / ANNOTATIONS
    if not file.is_file() or not (folder / IMAGES).is_dir():
        raise HiPruneError(
            f"COCO={folder}: expected a folder with {IMAGES}/ and {ANNOTATIONS} in it, out of "
            "val2017.zip and annotations_trainval2017.zip of cocodataset.org"
        )
    listed = json.loads(file.read_text())
    objects = defaultdict(list)
    for annotation in listed["annotations"]:
        objects[annotation["image_id"]].append(annotation["segmentation"])
    for entry in sorted(listed["images"], key=lambda entry: entry["id"]):
        if count < 1:
            return
        mask = _mask(objects[entry["id"]], entry["height"], entry["width"])
        image = open_image(folder / IMAGES / entry["file_name"])
        image, mask = central_square(image, mask)
        if bool(mask.any()):
            count -= 1
            yield Sample(entry["file_name"], image, mask)


def central_square(
    image: Image.Image, mask: Tensor | None = None
) -> tuple[Image.Image, Tensor | None]:
    """What is left of an image and of its (H, W) mask."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    cut = image.crop((left, top, left + side, top + side))
    return cut, None if mask is None else mask[top : top + side, left : left + side]


def coverage_of(sample: Sample, grid: TokenGrid) -> Tensor:
    """(rows, columns): the share of each token's square that objects cover."""
    from hiprune.figures.analysis import coverage

    return coverage(sample.mask, grid.rows, grid.columns, grid.box)


def _pictures(paths: Sequence[Path], whose: str, what: str = "picture") -> Samples:
    found = [Sample(path.stem, central_square(open_image(path))[0]) for path in paths]
    return Samples(f"{_number(len(found), what)} {whose}", found)


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _in_folder(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise HiPruneError(
            f"IMAGES {shown(folder)}: no picture; expected a folder of {', '.join(SUFFIXES)}"
        )
    return found


def _photos() -> list[Path]:
    """Those that the installed packages hold."""
    found = []
    for files in (PHOTOS, MORE_PHOTOS):
        for folder, names in files.items():
            package, _, rest = folder.partition("/")
            spec = find_spec(package)
            if spec is not None:
                found += [Path(spec.origin).parent / rest / name for name in names]
    found = [path for path in found if path.is_file()]
    if not found:
        raise HiPruneError("no photos: scikit-image and scikit-learn are not installed")
    return found


def _mask(segmentations: list, height: int, width: int) -> torch.Tensor:
    """(H, W) bool, the pixels of any object: polygons, or of crowds run lengths down columns."""
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    runs = np.zeros((height, width), bool)
    for segmentation in segmentations:
        if isinstance(segmentation, list):
            for polygon in segmentation:
                draw.polygon(polygon, fill=1)
        else:
            lengths = segmentation["counts"]
            inside = np.arange(len(lengths)) % 2 == 1
            runs |= np.repeat(inside, lengths).reshape(width, height).T
    return torch.from_numpy(np.array(canvas, bool) | runs)
