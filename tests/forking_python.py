"""A Python that forks itself for each program, with the slow imports done.

Scripts and notebooks under test start Python many times; to import torch anew takes seconds each.

    with serving("torch", "llava") as place:  # or serving_here(), a fork of the tests' own process
        run(place, ["program.py", "argument"])  # the exit status; also ["-m", "module", "argument"]

and, in a process of its own, ``[*command(place), "program.py", "argument"]``, or by a command of
``write_python``. SIGINT and SIGTERM reach the program; it ends with who asked.
"""

from __future__ import annotations

import gc
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
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PR_SET_PDEATHSIG = 1  # prctl(2)


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


@contextmanager
def serving_here(*modules: str, anew: tuple[str, ...] = ()) -> Iterator[str]:
    """The same, forked from this process: what it has imported costs nothing.

    Our own modules, and those of the packages ``anew``, are imported by each program, as ever.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/socket"
        told, tells = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                if sys.platform == "linux":  # it ends with this process, however that ends
                    import ctypes

                    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                os.dup2(tells, 1)
                _forget_the_tests({"hiprune", "scripts", *anew})
                serve(place, list(modules))
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(1)
        os.close(tells)
        try:
            with open(told, "rb") as file:
                assert file.readline() == b"ready\n"
            yield place
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _forget_the_tests(packages: set[str]) -> None:
    """This fork of a process with tests becomes a Python that has just started."""
    import logging

    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]
    here = Path(__file__).resolve().parent
    elsewhere = [p for p in sys.path if p and Path(p).resolve() not in (here, here.parent)]
    sys.path[:] = ["", *elsewhere]  # the first is the program's folder, below
    sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("_pytest")]
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.root.handlers.clear()
    for logger in logging.root.manager.loggerDict.values():
        for handler in getattr(logger, "handlers", ()):
            if type(handler) is logging.StreamHandler:
                handler.stream = sys.stderr  # not what caught a test's when it was made
    warnings.resetwarnings()
    hidden = PendingDeprecationWarning, ImportWarning, ResourceWarning
    for kind in (DeprecationWarning, *hidden):
        warnings.simplefilter("ignore", kind)
    warnings.filterwarnings("default", "", DeprecationWarning, "__main__")


def command(place: str) -> list[str]:
    """What is taken for Python at the beginning of a command line."""
    return [sys.executable, "-S", __file__, place]


def write_python(file: Path, place: str) -> None:
    """A command that is taken for Python: programs that start others by it fork these, too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    line = f'FORKING_PYTHON="$0" exec "{sys.executable}" -S "{__file__}" "{place}" "$@"'
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(0o755)


def run(place: str, arguments: list[str]) -> int:
    """The program's exit status; it has this process's streams, folder and variables."""
    request = {"arguments": arguments, "folder": os.getcwd(), "variables": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(place)
        socket.send_fds(server, [b"-"], [0, 1, 2])
        server.sendall(json.dumps(request).encode() + b"\n")
        if __name__ == "__main__":
            for sign in (signal.SIGINT, signal.SIGTERM):
                signal.signal(sign, lambda number, frame: server.sendall(bytes([number])))
        return int(server.recv(10))


def serve(place: str, modules: list[str]) -> None:
    gc.disable()
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # no program looks for garbage in it
    gc.enable()
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
        if sys.argv[:2] == ["-W", "ignore"]:
            warnings.simplefilter("ignore")
        del sys.argv[: 2 if sys.argv[0] == "-W" else 1]
    named = "" if sys.flags.isolated else os.environ.get("PYTHONPATH", "")
    folders = [folder for folder in named.split(os.pathsep) if folder]
    sys.path[1:1] = folders
    for file in (Path(folder, "sitecustomize.py") for folder in folders):
        if file.is_file():
            runpy.run_path(str(file))


def _end_with(client: socket.socket) -> None:
    while number := client.recv(1):  # a signal that reached who asked
        os.kill(os.getpid(), number[0])
    os._exit(1)  # who asked is gone


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(run(sys.argv[1], sys.argv[2:]))
