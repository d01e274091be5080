"""A bench script whose Python, lmms-eval with it, runs in this process.

For tests that are not about the processes: to start and import all of it takes longer than most
runs of the small models.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from few_tasks.sitecustomize import few_tasks

from scripts.bench import process as bench_process
from scripts.bench import run as bench_run
from scripts.bench.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = ("CKPT", "TASKS", "RETENTIONS", "LIMIT", "NUM_PROCESSES", "OUTPUT")
# Prints what it is given, a line each.
PYTHON = '#!/bin/sh\nprintf "%s\\n" "$@"\n'


def bench_here(script: str, *arguments: str, **variables: str) -> tuple[int, str]:
    """Exit status and output of the command ``VARIABLE=value ... bash SCRIPT arguments``."""
    output = StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", handed_over(script, *arguments))
        patch.setattr(torch.cuda, "is_available", lambda: False)  # as where there is no GPU
        patch.setattr(bench_run, "end_on_signals", lambda: None)
        patch.setattr(bench_process, "_stream", evaluate)
        with redirect_stdout(output), redirect_stderr(output):
            status = main()
    return status, output.getvalue()


def handed_over(script: str, *arguments: str) -> list[str]:
    """The program that a script starts, and its arguments."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin" / "python"
        python.parent.mkdir()
        python.write_text(PYTHON)
        python.chmod(0o755)
        (Path(folder) / "hiprune-setup-complete").touch()
        command = ["bash", str(ROOT / script), *arguments]
        env = {**os.environ, "VENV": folder}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    return words[words.index("bench") :]


def evaluate(command: list[str], environment: dict[str, str], log: Path) -> int:
    """In place of the process of a run: what accelerate launches, under the run's variables."""
    import lmms_eval.__main__ as lmms_eval
    from lmms_eval.loggers import EvaluationTracker

    launched = command[command.index("lmms_eval") :]
    with pytest.MonkeyPatch.context() as patch, open(log, "w", encoding="utf-8") as file:
        for name, value in {**environment, "ACCELERATE_USE_CPU": "true"}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", launched)
        patch.setattr(lmms_eval, "TaskManager", partial(few_tasks, lmms_eval.TaskManager))
        patch.setattr(lmms_eval, "make_table", lambda *_: "")  # for people: nobody reads the log
        # It asks five times for data that are not here, two seconds apart.
        patch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))
        # Our models wrap it until the results are written.
        original = EvaluationTracker.save_results_aggregated
        patch.setattr(EvaluationTracker, "save_results_aggregated", original)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                lmms_eval.cli_evaluate()
        finally:
            lmms_eval.eval_logger.remove()  # it writes to the file
    return 0
