"""The checkpoint and the task of --tiny: made when they are missing or made of something older."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from bench_settings import Settings
from benchmarks import ASSETS, ROOT

STAMP = "made-with"  # in the folder of the runs: what model and task they are of


def make_tiny(settings: Settings) -> None:
    """Make the task, and the checkpoint where it is not the asset itself.

    Runs of another model or task under the same name are set aside, so that no table mixes them.
    """
    from convert_hf_to_llava import convert
    from make_tiny_task import make_task

    tiny, family = settings.benchmark.tiny, settings.benchmark.family
    asset, scripts = ASSETS / tiny.asset, ROOT / "scripts"
    if tiny.checkpoint != asset:
        sources = (scripts / "convert_hf_to_llava.py", *_weights(asset))
        _make(tiny.checkpoint, sources, lambda path: convert(asset, path))
    sources = (
        scripts / "make_tiny_task.py",
        *(scripts / "tiny_task").glob("*.py"),
        *(scripts / "tiny_train" / name for name in ("scenes.py", "questions.py")),
    )
    _make(settings.include_path, sources, lambda path: make_task(path, family))
    set_aside(settings.folder, fingerprint(asset, settings.include_path))


def fingerprint(asset: Path, task: Path) -> str:
    """Of a model and a task, by what they hold and not by where they lie."""
    digest = hashlib.sha256()
    for file in (*_weights(asset), *sorted(task.glob("*.py")), *sorted(task.glob("images/*"))):
        digest.update(file.read_bytes())
    for file in sorted(task.glob("*.jsonl")):
        digest.update(file.read_bytes().replace(str(task).encode(), b""))
    return digest.hexdigest()


def set_aside(folder: Path, stamp: str) -> None:
    """Give ``folder`` the stamp; runs in it that have another go to ``folder``.N.old."""
    file = folder / STAMP
    if folder.is_dir() and (not file.is_file() or file.read_text() != stamp):
        number = 1
        while (old := folder.with_name(f"{folder.name}.{number}.old")).exists():
            number += 1
        folder.rename(old)
        print(f"the small model or its task has changed: earlier runs are now in {old}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(stamp)


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
    if not done.is_file() or done.read_text() != digest.hexdigest():
        print(f"making {path}", flush=True)
        done.unlink(missing_ok=True)
        make(path)
        done.write_text(digest.hexdigest())
