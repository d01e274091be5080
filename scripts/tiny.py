"""The checkpoint and the task of --tiny: made when they are missing or made by an older script."""

from __future__ import annotations

import hashlib
import sys

from benchmarks import ROOT, Benchmark

TINY = ROOT / ".tiny"
TASKS = TINY / f"tasks-{hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]}"


def make_tiny(name: str, benchmark: Benchmark) -> None:
    """Make a benchmark's tiny checkpoint and the task, unless they are there as they should be."""
    from make_tiny_checkpoint import make_checkpoint
    from make_tiny_task import make_task

    makers = {
        benchmark.tiny_checkpoint: lambda path: make_checkpoint(path, name),
        # The task names files of the environment that it was made in.
        TASKS.name: make_task,
    }
    for folder, make in makers.items():
        path = TINY / folder
        done = path / "complete"
        mark = f"{path}\n{sys.prefix}\n{_fingerprint()}\n"  # paths: the files made hold them
        if not done.is_file() or done.read_text() != mark:
            print(f"making {path}", flush=True)
            make(path)
            done.write_text(mark)


def _fingerprint() -> str:
    """Of all that makes the files: an older maker's are made anew."""
    makers = sorted((ROOT / "scripts").glob("*tiny*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in makers)).hexdigest()
