"""A Python program run in this process or a fork of it, for tests that are not about its start.

To start one and import torch takes seconds, in which most of these programs are long done.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest


def run_here(
    program: Path, *arguments: object, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """As ``subprocess.run([python, program, *arguments], env=environment, text=True, ...)``.

    What it leaves in the modules that it imports stays there.
    """
    command = [str(program), *map(str, arguments)]
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", command)
        patch.setattr(sys, "path", [str(program.parent), *sys.path])
        if environment is not None:
            for name in os.environ.keys() - environment.keys():
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
        try:
            runpy.run_path(str(program), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code
            if isinstance(status, str):
                print(status, file=err)
            status = status if isinstance(status, int) else int(status is not None)
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def run_for_no_reader(program: Path, *arguments: object) -> tuple[int, str]:
    """(exit status, standard error) of a program whose output nobody reads, as after ``| true``."""
    reader, writer = os.pipe()
    os.close(reader)
    told, errors = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 1)
        os.dup2(errors, 2)
        status = 120
        try:
            with open(1, "w") as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
                sys.argv = [str(program), *map(str, arguments)]
                sys.path.insert(0, str(program.parent))
                try:
                    runpy.run_path(str(program), run_name="__main__")
                    status = 0
                except SystemExit as end:
                    status = end.code if isinstance(end.code, int) else int(end.code is not None)
                    if isinstance(end.code, str):
                        print(end.code, file=sys.stderr)
        except BaseException:  # BrokenPipeError, too, of what is written at last
            status = 120
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writer)
    os.close(errors)
    with open(told) as file:
        text = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text
