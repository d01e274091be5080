"""Answers kept as they come, so that a run that was cut off goes on where it was.

lmms-eval's own ``--use_cache`` keeps nothing until all of a task is answered (its
``ResponseCache.execute`` calls ``generate_until`` with every question and stores afterwards), and
its key knows neither HiPrune's variables nor the checkpoint's revision.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = "HIPRUNE_ANSWERS"  # the variable: where to keep them; not set, nothing is kept


@dataclass(frozen=True)
class Kept:
    """An answer, and what is counted with it: of a batch, its first answer has all."""

    text: str
    images: int
    visual_tokens: int


class Answers:
    """What the processes of one run have answered, in this start and those before it.

    Args:
        folder: a file a process; None keeps nothing.
        rank: of this process.
        decides: all that decides an answer beside the question; files of anything else are
            left unread, and this process's own is begun anew.
    """

    def __init__(self, folder: str | os.PathLike | None, rank: int, decides: object) -> None:
        self._file, self._kept = None, {}
        if folder is None:
            return
        head = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()
        Path(folder).mkdir(parents=True, exist_ok=True)
        own = Path(folder, f"rank-{rank}.jsonl")
        for path in Path(folder).glob("rank-*.jsonl"):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            if lines and lines[0] == head:
                self._kept |= dict(_entries(lines[1:]))
            elif path == own:
                path.unlink()
        self._file = open(own, "a", encoding="utf-8")  # noqa: SIM115 - as long as the run
        if self._file.tell() == 0:
            self._write(head)

    @classmethod
    def of_environment(cls, rank: int, decides: Callable[[], object]) -> Answers:
        """Kept in the folder that the variable names."""
        folder = os.environ.get(FOLDER)
        return cls(folder, rank, decides() if folder else None)

    def key(self, task: str, context: Any, images: Sequence[Any], settings: dict) -> str | None:
        """Of a question (text, or messages), with what its images show; None where its answer is
        not to be kept: of other media, or drawn at random."""
        if (
            self._file is None
            or settings.get("do_sample")
            or (settings.get("temperature") or 0) > 0
        ):
            return None
        text = json.dumps([task, context, settings], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode())
        for image in images:
            if not isinstance(image, Image.Image):
                return None
            digest.update(f"{image.mode} {image.size}".encode() + image.tobytes())
        return digest.hexdigest()

    def get(self, key: str | None) -> Kept | None:
        return self._kept.get(key)

    def keep(self, key: str | None, kept: Kept) -> None:
        if key is not None:
            self._write(json.dumps([key, kept.text, kept.images, kept.visual_tokens]))

    def _write(self, line: str) -> None:
        # The end of the line comes first: a line that was cut off spoils no other.
        self._file.write(line if self._file.tell() == 0 else f"\n{line}")
        self._file.flush()


def _entries(lines: list[str]):
    for line in lines:
        try:
            key, text, images, tokens = json.loads(line)
        except ValueError:  # cut off
            continue
        yield key, Kept(text, images, tokens)


def sources() -> str:
    """A hash of this package's code, which decides answers as much as any setting."""
    import hiprune
    from hiprune import models

    digest = hashlib.sha256()
    for package in (hiprune, models):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
