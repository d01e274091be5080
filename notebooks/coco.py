"""COCO val2017 as a user has it: images, and the pixels of all annotated objects."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paths  # noqa: F401, which finds open_image
import torch
from PIL import Image, ImageDraw
from samples import Sample, central_square

from hiprune import HiPruneError
from hiprune.images import open_image

ANNOTATIONS = Path("annotations") / "instances_val2017.json"
IMAGES = "val2017"


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
