"""Make a tiny lmms-eval task: yes/no questions on photos and drawn scenes, all made on the spot.

The task has the fields and the metrics of lmms-eval's own `pope` (its task file is included), so
that a run goes the way of a real benchmark. Photos are those that scikit-image and scikit-learn
install; scenes are coloured shapes on noise, drawn from a fixed seed.

    python scripts/make_tiny_task.py --output .tiny/tasks
"""

from __future__ import annotations

import argparse
import json
import random
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import yaml
from PIL import Image, ImageDraw
from skimage import data
from sklearn.datasets import load_sample_image

NAME = "hiprune_tiny"
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 40),
}
SHAPES = ("circle", "square", "triangle")
# Photo -> something that it shows.
PHOTOS = {
    "astronaut": "woman",
    "chelsea": "cat",
    "coffee": "cup",
    "coins": "coin",
    "rocket": "rocket",
    "camera": "camera",
    "china.jpg": "building",
    "flower.jpg": "flower",
}


def photos() -> list[tuple[Image.Image, str]]:
    """Every photo with what it shows, at several aspect ratios (they decide LLaVA-NeXT's views)."""
    found = []
    for name, thing in PHOTOS.items():
        pixels = load_sample_image(name) if "." in name else getattr(data, name)()
        image = Image.fromarray(pixels).convert("RGB")
        image.thumbnail((480, 480))
        width, height = image.size
        found.append((image, thing))
        found.append((image.crop((0, height // 4, width, 3 * height // 4)), thing))
    return found


def scene(rng: random.Random) -> tuple[Image.Image, set[tuple[str, str]]]:
    """A drawn picture and the (colour, shape) pairs in it."""
    width, height = rng.choice([(336, 336), (448, 300), (300, 448), (640, 240)])
    noise = np.random.default_rng(rng.getrandbits(32)).integers(90, 160, (height, width, 3))
    image = Image.fromarray(noise.astype(np.uint8))
    draw, shown = ImageDraw.Draw(image), set()
    for _ in range(rng.randint(2, 5)):
        colour, shape, side = rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.randint(30, 80)
        x, y = rng.randint(0, width - side), rng.randint(0, height - side)
        box = (x, y, x + side, y + side)
        if shape == "circle":
            draw.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            draw.rectangle(box, fill=COLOURS[colour])
        else:
            corners = [(x, y + side), (x + side, y + side), (x + side // 2, y)]
            draw.polygon(corners, fill=COLOURS[colour])
        shown.add((colour, shape))
    return image, shown


def questions(n_scenes: int, seed: int) -> list[dict]:
    """Rows of the data set; half of the answers are yes."""
    rng = random.Random(seed)
    rows = []

    def ask(image: Image.Image, thing: str, answer: str) -> None:
        article = "an" if thing[0] in "aeiou" else "a"
        question = f"Is there {article} {thing} in the image?"
        row = {"question_id": str(len(rows)), "image": image, "question": question}
        rows.append({**row, "answer": answer})

    things = sorted(set(PHOTOS.values()))
    for image, thing in photos():
        if len(rows) % 2:
            ask(image, thing, "yes")
        else:
            ask(image, rng.choice([other for other in things if other != thing]), "no")
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    for index in range(n_scenes):
        image, shown = scene(rng)
        pair = rng.choice(sorted(shown) if index % 2 else [p for p in pairs if p not in shown])
        ask(image, " ".join(pair), "yes" if index % 2 else "no")
    return rows


def make_task(directory: Path, n_scenes: int = 24, seed: int = 0) -> Path:
    """Write the data and the task file; return the folder for lmms-eval's ``--include_path``."""
    directory = Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_list(
        questions(n_scenes, seed),
        features=datasets.Features(
            {
                "question_id": datasets.Value("string"),
                "image": datasets.Image(),
                "question": datasets.Value("string"),
                "answer": datasets.Value("string"),
            }
        ),
    )
    parquet = directory / f"{NAME}.parquet"
    rows.to_parquet(parquet)
    lmms_eval = Path(find_spec("lmms_eval").submodule_search_locations[0])
    task = {
        "include": str(lmms_eval / "tasks" / "pope" / "pope.yaml"),
        "task": NAME,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(parquet)}},
    }
    (directory / f"{NAME}.yaml").write_text(yaml.safe_dump(task))
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for data and task")
    parser.add_argument("--scenes", type=int, default=24, help="drawn scenes beside the photos")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    directory = make_task(args.output, args.scenes, args.seed)
    print(json.dumps({"task": NAME, "include_path": str(directory)}))


if __name__ == "__main__":
    main()
