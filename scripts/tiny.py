"""The checkpoint and the task of --tiny: made when they are missing or made by an older script."""

from __future__ import annotations

import hashlib
import sys

from benchmarks import ROOT, Benchmark

TINY = ROOT / ".tiny"


def make_tiny(benchmark: Benchmark) -> None:
    """Make a family's tiny checkpoint and the task, unless they are there as they should be."""
    from make_tiny_checkpoint import make_checkpoint
    from make_tiny_task import make_task

    makers = {
        benchmark.tiny_checkpoint: lambda path: make_checkpoint(path, benchmark.family),
        "tasks": make_task,
    }
    for name, make in makers.items():
        path = TINY / name
        done = path / "complete"
        mark = f"{path}\n{sys.prefix}\n{_fingerprint()}\n"  # paths: the files made hold them
        if not done.is_file() or done.read_text() != mark:
            print(f"making {path}", flush=True)
            make(path)
            done.write_text(mark)


def _fingerprint() -> str:
    makers = [ROOT / "scripts" / f"make_tiny_{what}.py" for what in ("checkpoint", "task")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in makers)).hexdigest()
