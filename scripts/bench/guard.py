"""Runs a command that ends when its starter ends, also where that is killed and can say nothing.

    python guard.py COMMAND ...

Standard input is a pipe that the starter holds open; standard library alone, since it runs beside
every evaluation. It leads the process group: what ends it ends the group.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 20


def main() -> int:
    # A handler that does nothing: the command, which gets the default one, ends at the group's
    # SIGTERM; the guard stays to tell how.
    signal.signal(signal.SIGTERM, lambda *_: None)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    starter_is_gone = threading.Event()
    threading.Thread(target=_watch, args=(starter_is_gone,), daemon=True).start()
    status = process.wait()
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
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
