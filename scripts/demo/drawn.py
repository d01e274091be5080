"""Pictures of the page: what was kept, the two attention maps, and the scenes to try."""

from __future__ import annotations

import io
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from hiprune import TokenSelection
from hiprune.figures import attention_figure, selection_figure
from scripts.benchmarks import TINY
from scripts.demo.asking import Seen
from scripts.tiny.questions import ask
from scripts.tiny.scenes import DRAWINGS, make_scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = TINY / "demo"
SEED = 3_000_000_037  # no training's
SCENES = (0, 1, 2, 3, 4, 5)
DPI = 130
_DRAWING = threading.Lock()  # matplotlib draws for one thread at a time


@dataclass(frozen=True)
class Example:
    """A scene's file, and a question about it."""

    path: Path
    question: str


def examples(family: str) -> list[Example]:
    """Scenes as the family's small model knows them, drawn unless they lie there already."""
    drawing = DRAWINGS.get(family, DRAWINGS["qwen2_5_vl"])
    folder = FOLDER / f"{drawing.side}-{drawing.sizes[0]}"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, index in enumerate(SCENES):
        scene = make_scene(SEED, index, drawing.side, drawing.sizes)
        path = folder / f"scene-{index}.png"
        if not path.is_file():
            half = path.with_suffix(f".{os.getpid()}")  # nobody sees half a file
            Image.fromarray(scene.image).save(half, format="PNG")
            half.replace(path)
        asked = ask(scene, np.random.default_rng([SEED, index, 1]), per_kind=1)
        found.append(Example(path, asked[(number + 1) % len(asked)].text))
    return found


def kept(seen: Seen, selection: TokenSelection) -> Image.Image:
    """The kept tokens on the picture."""
    return _rendered(selection_figure(seen.image, selection, seen.made.grids))


def attention(seen: Seen, object_layer: int) -> Image.Image:
    """The two maps that the tokens are chosen by, of layer l and of the output layer."""
    layers = (object_layer, seen.made.output_layer)
    return _rendered(attention_figure(seen.image, seen.maps, seen.made.grids, layers))


def _rendered(figure: Figure) -> Image.Image:
    with _DRAWING, io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=DPI)
        image = Image.open(file)
        image.load()
    return image
