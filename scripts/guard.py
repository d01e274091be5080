"""Runs a command that ends when its starter ends, also where that is killed and can say nothing.

    python guard.py COMMAND ...

Standard input is a pipe that the starter holds open; standard library alone, since it runs beside
every evaluation. It leads the process group: what ends it ends the group. torchrun gives each of
its processes a session of its own, out of the group: where it is killed they come to the guard
(Linux), which ends them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

GRACE_SECONDS = 20
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: whose parent has ended becomes our child


def main() -> int:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A handler that does nothing: the command, which gets the default one, ends at the group's
    # SIGTERM; the guard stays to tell how.
    signal.signal(signal.SIGTERM, lambda *_: None)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    starter_is_gone = threading.Event()
    threading.Thread(target=_watch, args=(starter_is_gone,), daemon=True).start()
    status = process.wait()
    if status:
        _end_children()
    if starter_is_gone.is_set():
        os.killpg(0, signal.SIGKILL)  # whatever of the command's own processes is left
    if status < 0:  # end by the same signal
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    return status


def _watch(starter_is_gone: threading.Event) -> None:
    while os.read(0, 4096):  # to the end, which comes when the last writer is gone
        pass
    starter_is_gone.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    _end_children()
    os.killpg(0, signal.SIGKILL)


def _end_children() -> None:
    """Until there is none: those of a child that has ended become ours."""
    while children := _children():
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _children() -> list[int]:
    """Processes that still run and whose parent this is; none where there is no /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if int(parent) == os.getpid() and state not in "ZX":
            found.append(int(path.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
