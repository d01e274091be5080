"""The checkpoint and the task of --tiny: made when they are missing or made of something older."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from scripts.bench.settings import Settings
from scripts.benchmarks import ASSETS, ROOT
from scripts.env.file_lock import locked


def make_tiny(settings: Settings) -> None:
    """Make the task, and the checkpoint where it is not the asset itself."""
    from scripts.convert.to_llava import convert
    from scripts.tiny.task import make_task

    tiny, family = settings.benchmark.tiny, settings.benchmark.family
    asset, scripts = ASSETS / tiny.asset, ROOT / "scripts"
    if tiny.checkpoint != asset:
        sources = (scripts / "convert" / "to_llava.py", *_weights(asset))
        _make(tiny.checkpoint, sources, lambda path: convert(asset, path))
    sources = (
        scripts / "tiny" / name for name in ("task.py", "tiny_task.py", "scenes.py", "questions.py")
    )
    _make(settings.include_path, sources, lambda path: make_task(path, family))


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
