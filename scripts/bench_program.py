"""What bench_*.sh, ablation.sh and methods.sh do alike: from settings to runs to a report.

Every run in turn, resumable; what fails is told while the others go on.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable

from bench_run import Run
from bench_settings import Settings
from benchmarks import BENCHMARKS, Benchmark
from tiny import make_tiny

from hiprune import HiPruneError


def program(
    description: str,
    read: Callable[[Benchmark, bool, dict[str, str]], Settings],
    runs_of: Callable[[Settings], list[Run]],
    report: Callable[[Settings], None],
) -> int:
    """The program's exit status: 0, 1 where a run failed, 2 for bad variables, 130 for Ctrl-C.

    Args:
        description: the program's docstring.
        read: benchmark, whether --tiny, variables -> settings, or an error.
        runs_of: settings -> all their runs.
        report: prints what has finished.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--family", choices=BENCHMARKS, required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    try:
        settings = read(BENCHMARKS[args.family], args.tiny, dict(os.environ))
    except HiPruneError as error:
        print(error, file=sys.stderr)
        return 2
    end_on_signals()
    runs = runs_of(settings)
    if any(t.startswith("mmbench") for t in settings.tasks) and "OPENAI_API_KEY" not in os.environ:
        print(
            "note: OPENAI_API_KEY is not set. lmms-eval has a GPT model read the MMBench answers "
            "that its rules cannot; without a key it draws a letter for each, after retries."
        )
    try:
        if settings.tiny:
            make_tiny(settings)
        failures = run_all(runs)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on with the run that it was at", flush=True)
        return 130
    report(settings)
    for label, reason in failures.items():
        print(f"FAILED {label}: {reason}")
    return 1 if failures else 0


def end_on_signals() -> None:
    """Have what ends this process end the evaluation as well, as Ctrl-C does."""
    for sign in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal, too
        signal.signal(sign, signal.default_int_handler)


def run_all(runs: list[Run]) -> dict[str, str]:
    """Execute what is not finished; the failures, label -> reason."""
    failures = {}
    for number, run in enumerate(runs, 1):
        head = f"[{number}/{len(runs)}] {run.label}"
        if run.finished:
            print(f"{head}: finished before, kept in {run.folder}", flush=True)
            continue
        print(f"{head}: running", flush=True)
        start = time.monotonic()
        reason = run.execute()
        took = f"{time.monotonic() - start:.0f} s"
        if reason is None:
            print(f"{head}: done in {took}", flush=True)
        else:
            failures[run.label] = reason
            print(f"{head}: FAILED after {took}: {reason}", flush=True)
            print(f"    log: {run.failed_folder / 'log.txt'}", flush=True)
    return failures
