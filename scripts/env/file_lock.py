"""A lock on a path: one process holds it, and it ends with its holder, however that ends.

    exec 9>>PATH; until python file_lock.py PATH 9 NAME; do exec 9>>PATH; done

has a shell hold it, and say as NAME that it waits. Standard library alone: a set-up runs it before
anything is installed.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock ``path`` inside of the block.

    Args:
        path: a file, there only while somebody holds it (or was killed holding it); its folder
            is made.
        wait: until it is free, where somebody holds it.

    Yields:
        Whether it is held; False where another process holds it and ``wait`` is not set.

    Raises:
        OSError: a folder that cannot be written, or a file system that has no locks.
    """
    file = _take(path, wait)
    if file is None:
        yield False
        return
    with file:
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)  # while it is held, so that nobody else's is removed


def holder(path: Path) -> str:
    """Who holds a lock, in words; as it says itself, for whoever waits."""
    try:
        signature = json.loads(path.read_text(encoding="utf-8"))
        return f"process {signature['pid']} on {signature['host']}, since {signature['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just ended, or just begun
        return "another process"


def _take(path: Path, wait: bool) -> IO[str] | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as it is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException as error:
            file.close()
            if isinstance(error, BlockingIOError):
                return None
            raise
        if _is(path, file):
            _sign(file, os.getpid())
            return file
        file.close()  # of a holder that removed it in between


def _sign(file: IO[str], pid: int) -> None:
    file.truncate(0)
    since = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
    json.dump({"host": socket.gethostname(), "pid": pid, "since": since}, file)
    file.flush()


def _is(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def main() -> int:
    """Lock the shell's own descriptor; 1 where the file was removed in between: once more."""
    path, descriptor = Path(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{sys.argv[3]}: {holder(path)}, is at it; waiting", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        if not _is(path, file):
            return 1
        _sign(file, os.getppid())
    return 0


if __name__ == "__main__":
    sys.exit(main())
