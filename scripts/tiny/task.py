"""What --tiny needs: the task of lmms-eval, and the checkpoint where it is not the asset itself.

The scenes are drawn as the small models under assets/ know them (scenes.py), from a seed of their
own: no training has seen them. An image has five questions: existence, counted as POPE does,
colour, shape, count and position; where a scene gives nothing to ask of a kind (no colour that one
thing alone has, say), a second on existence takes its place.

    python -m scripts.tiny.task --family llava --output .tiny/tasks/llava
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from scripts.benchmarks import ASSETS, Tiny
from scripts.env.file_lock import locked
from scripts.tables.columns import TINY_TASK
from scripts.tiny.questions import ask
from scripts.tiny.scenes import DRAWINGS, make_scene

SCENES = 120
SEED = 3_000_000_019  # no training's, and not that of the scenes which its curve is measured on
CODE = Path(__file__).with_name("tiny_task.py")
METRICS = ("existence_accuracy", "existence_f1", "colour", "shape", "count", "position")


def questions(family: str, scenes: int, seed: int, images: Path) -> Iterator[dict[str, str]]:
    """Rows of the data set, a scene's one after the other; the scenes are drawn to ``images``."""
    drawing = DRAWINGS[family]
    for index in range(scenes):
        scene = make_scene(seed, index, drawing.side, drawing.sizes)
        file = images / f"{index:04}.png"
        Image.fromarray(scene.image).save(file)
        asked = ask(scene, np.random.default_rng([seed, index, 1]), per_kind=1)
        for number, question in enumerate(asked):
            yield {
                "question_id": f"{index}-{number}",
                "image": str(file),
                "kind": question.kind,
                "question": question.text,
                "answer": question.answer,
            }


def make_task(directory: Path, family: str, scenes: int = SCENES, seed: int = SEED) -> Path:
    """Write the data and the task; return the folder for lmms-eval's ``--include_path``.

    Args:
        directory: made if missing.
        family: one of scenes.DRAWINGS.
        scenes: how many; each has five questions.
        seed: of the scenes and the questions.
    """
    directory = Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    images = directory / "images"
    images.mkdir(exist_ok=True)
    data = directory / f"{TINY_TASK}.jsonl"
    rows = questions(family, scenes, seed, images)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.copyfile(CODE, directory / CODE.name)
    task = {
        "task": TINY_TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_visual": _Function("doc_to_visual"),
        "doc_to_text": _Function("doc_to_text"),
        "doc_to_target": "answer",
        "generation_kwargs": {
            "max_new_tokens": 8,
            "temperature": 0,
            "do_sample": False,
            "num_beams": 1,
        },
        "process_results": _Function("process_results"),
        "metric_list": [
            {"metric": name, "aggregation": _Function(name), "higher_is_better": True}
            for name in METRICS
        ],
        "metadata": [{"version": 1.0}],
    }
    text = yaml.dump(task, Dumper=_Dumper, sort_keys=False)
    (directory / f"{TINY_TASK}.yaml").write_text(text, encoding="utf-8")
    return directory


class _Function(str):
    """A function of the task's code, which lmms-eval's YAML names with a tag."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Function,
    lambda dumper, name: dumper.represent_scalar("!function", f"{CODE.stem}.{name}"),
)


def make_checkpoint(tiny: Tiny) -> None:
    """Convert the asset, where that is what is evaluated, and not done or of something older."""
    asset, here = ASSETS / tiny.asset, Path(__file__).parent

    def make(path: Path) -> None:
        from scripts.convert.to_llava import convert  # transformers with its models: seconds

        convert(asset, path)

    if tiny.checkpoint != asset:
        code = (here.parent / "convert" / name for name in ("to_llava.py", "names.py"))
        _make(tiny.checkpoint, (*code, *_weights(asset)), make)


def make_tiny_task(tiny: Tiny) -> None:
    """Make the task, where it is missing or made of something older."""
    here = Path(__file__).parent
    sources = [here / name for name in ("task.py", "tiny_task.py", "scenes.py", "questions.py")]
    _make(tiny.task_folder, sources, lambda path: make_task(path, tiny.scenes))


def _weights(asset: Path) -> list[Path]:
    """What a checkpoint computes with; not its card and curve."""
    names = ("config.json", "*.safetensors", "tokenizer*", "processor_config.json")
    return sorted({file for name in names for file in asset.glob(name)})


def _make(path: Path, sources: Iterable[Path], make: Callable[[Path], object]) -> None:
    """Call ``make`` unless ``path`` was made of these very files, and at this very place."""
    digest = hashlib.sha256(str(path).encode())  # the files made hold it
    for source in sorted(sources):
        digest.update(source.read_bytes())
    done = path / "complete"
    with locked(path.with_name(f"{path.name}.lock"), wait=True):  # of another start
        if not done.is_file() or done.read_text() != digest.hexdigest():
            print(f"making {path}", flush=True)
            done.unlink(missing_ok=True)
            make(path)
            done.write_text(digest.hexdigest())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=DRAWINGS, default="llava", help="whose scenes to draw")
    parser.add_argument("--output", type=Path, required=True, help="folder for data and task")
    parser.add_argument("--scenes", type=int, default=SCENES, help="five questions each")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    directory = make_task(args.output, args.family, args.scenes, args.seed)
    print(json.dumps({"task": TINY_TASK, "include_path": str(directory)}))


if __name__ == "__main__":
    main()
