"""A Python program run in this process, for tests that are not about the process.

To start one and import torch takes seconds, in which most of these programs are long done.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
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
