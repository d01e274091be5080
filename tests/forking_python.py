"""A Python that forks itself for each program, with the slow imports done.

Scripts and notebooks under test start Python many times; to import torch anew takes seconds each.

    with serving("torch", "llava") as place:
        run(place, ["program.py", "argument"])  # the exit status; also ["-m", "module", "argument"]

and, in a process of its own, `python forking_python.py PLACE program.py argument`, or by a command
of ``write_python``. Who asked may be killed: the program ends with it.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(*modules: str, options: tuple[str, ...] = ()) -> Iterator[str]:
    """The socket of one that runs within the block, with Python's options, and imported these."""
    # A folder of its own for the short name that a socket must have.
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/socket"
        command = [sys.executable, *options, "-W", "ignore", __file__, "--serve", place, *modules]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            try:
                assert server.stdout.readline() == b"ready\n"
                yield place
            finally:
                server.kill()


def write_python(file: Path, place: str) -> None:
    """A command that is taken for Python: programs that start others by it fork these, too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    command = f'FORKING_PYTHON="$0" exec "{sys.executable}" -S "{__file__}" "{place}" "$@"'
    file.write_text(f"#!/bin/sh\n{command}\n")
    file.chmod(0o755)


def run(place: str, arguments: list[str]) -> int:
    """The program's exit status; it has this process's streams, folder and variables."""
    request = {"arguments": arguments, "folder": os.getcwd(), "variables": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(place)
        socket.send_fds(server, [b"-"], [0, 1, 2])
        server.sendall(json.dumps(request).encode() + b"\n")
        return int(server.recv(10))


def serve(place: str, modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a child
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen()
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _become(client)
            client.close()


def _become(client: socket.socket) -> None:
    """The program, in this child of the server."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(client, 1, 3)
    with client.makefile("rb") as file:
        request = json.loads(file.readline())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    sys.argv = request["arguments"]
    _start()
    threading.Thread(target=_end_with, args=(client,), daemon=True).start()
    status = 0
    try:
        if sys.argv[0] == "-m":
            del sys.argv[0]
            sys.path[0] = os.getcwd()
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(sys.argv[0]).parent)
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    client.sendall(str(status).encode())
    os._exit(0)


def _start() -> None:
    """What Python does of its command line and variables before it runs the program."""
    sys.executable = os.environ.pop("FORKING_PYTHON", sys.executable)
    sys.orig_argv = [sys.executable, *sys.argv]
    while sys.argv[0] in ("-S", "-u", "-W"):
        del sys.argv[: 2 if sys.argv[0] == "-W" else 1]
    named = "" if sys.flags.isolated else os.environ.get("PYTHONPATH", "")
    folders = [folder for folder in named.split(os.pathsep) if folder]
    sys.path[1:1] = folders
    for file in (Path(folder, "sitecustomize.py") for folder in folders):
        if file.is_file():
            runpy.run_path(str(file))


def _end_with(client: socket.socket) -> None:
    if not client.recv(1):
        os._exit(1)  # who asked is gone


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(run(sys.argv[1], sys.argv[2:]))
