"""What bench_*.sh, ablation.sh and methods.sh do alike: from settings to runs to a report.

Every run in turn, resumable; what fails is told while the others go on. Where nothing can run, all
stop with the one reason.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from hiprune import HiPruneError
from scripts.bench.identity import differences, with_identity
from scripts.bench.process import Run
from scripts.bench.registry import Registry, read_registry, without_access
from scripts.bench.settings import Settings
from scripts.benchmarks import Benchmark
from scripts.env.file_lock import holder, locked
from scripts.tables.columns import TINY_TASK
from scripts.tiny.task import make_checkpoint, make_tiny_task

NO_LOGIN = """note: no login to the model and data hub (`hf auth login`, or HF_TOKEN set to one).
lmms-eval asks for one even where data are public. Left out until then: {tasks}.
Tasks whose data are on this machine run all the same."""
NO_KEY = """note: {key} is not set. lmms-eval has a GPT model read the MMBench answers that its
rules cannot (they read a letter, or one option's text). Without a key it tries 15 times, some 45 s
an answer, and then draws a letter; the table says of how many answers."""
STOPPED = """stopped: the small model of this repository cannot be evaluated here either:
    {fault}
    setup_llava.sh and setup_qwen.sh repair an environment, or say what is wrong with it"""


def evaluate(
    benchmark: Benchmark,
    tiny: bool,
    read: Callable[[Benchmark, bool, dict[str, str]], Settings],
    runs_of: Callable[[Settings], list[Run]],
    report: Callable[[Settings], None],
) -> int:
    """The exit status: 0, 1 where a run failed, 2 for bad variables, 130 for Ctrl-C.

    Args:
        benchmark: whose defaults hold where a variable is not set.
        tiny: whether of the small model.
        read: benchmark, whether --tiny, variables -> settings, or an error.
        runs_of: settings -> all their runs.
        report: prints what has finished.
    """
    try:
        settings = read(benchmark, tiny, dict(os.environ))
        names = [task for task in settings.tasks if task != TINY_TASK]  # which is not made yet
        registry = read_registry(names) if names else Registry()
        registry.check(names, settings.limit)
        check_output(settings.output)
    except HiPruneError as error:
        print(error, file=sys.stderr)
        return 2
    end_on_signals()
    key = "AZURE_API_KEY" if os.environ.get("API_TYPE") == "azure" else "OPENAI_API_KEY"
    if any(t.startswith("mmbench") for t in settings.tasks) and not os.environ.get(key):
        print(NO_KEY.format(key=key), flush=True)
    try:
        if settings.tiny:
            make_checkpoint(settings.benchmark.tiny)
        if settings.asks_tiny:
            make_tiny_task(settings.benchmark.tiny)
        settings = with_identity(settings)
        for line in differences(settings):
            print(f"note: runs of other settings, left as they are: {line}")
        runs = runs_of(settings)
        barred = {} if settings.tiny else barred_tasks(runs, registry)
        if barred:
            print(NO_LOGIN.format(tasks=", ".join(barred)), flush=True)

        def diagnose(run: Run, reason: str) -> str | None:
            if settings.tiny and run.task == TINY_TASK:
                return reason
            return why_nothing_runs(settings.benchmark, read, runs_of)

        failures = run_all(runs, barred, diagnose)
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


def barred_tasks(runs: list[Run], registry: Registry) -> dict[str, str]:
    """Task or group -> why it, or one of its tasks, cannot load its data."""
    wanted = {run.task: registry.tasks(run.task) for run in unfinished(runs)}
    wanted.pop(TINY_TASK, None)  # whose data are made here
    found = without_access([task for tasks in wanted.values() for task in tasks])
    return {
        name: next(found[task] for task in tasks if task in found)
        for name, tasks in wanted.items()
        if found.keys() & tasks
    }


def check_output(folder: Path) -> None:
    """Raise a HiPruneError for a folder that nothing can be written to.

    Raises:
        HiPruneError: it, or what it is to be made in, cannot be written, or lmms-eval cannot be
            told its name.
    """
    if set(str(folder)) & set(",'\"[]{}"):
        raise HiPruneError(
            f"OUTPUT={str(folder)!r}: expected a path without commas, quotes and brackets, which "
            "lmms-eval takes for its own"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder), locked(folder / ".lock"):
            pass
    except OSError as error:
        raise HiPruneError(
            f"OUTPUT={str(folder)!r}: {error.strerror}; expected a folder that can be written"
        ) from error


def unfinished(runs: list[Run]) -> list[Run]:
    return [run for run in runs if not run.finished]


def why_nothing_runs(
    benchmark: Benchmark,
    read: Callable[[Benchmark, bool, dict[str, str]], Settings],
    runs_of: Callable[[Settings], list[Run]],
) -> str | None:
    """Why even the small model cannot be evaluated in this environment; None where it can."""
    with tempfile.TemporaryDirectory() as folder:
        engine = {"ENGINE": os.environ["ENGINE"]} if "ENGINE" in os.environ else {}
        settings = read(benchmark, True, {"LIMIT": "2", "OUTPUT": folder, **engine})
        make_checkpoint(settings.benchmark.tiny)
        make_tiny_task(settings.benchmark.tiny)
        return runs_of(settings)[0].execute()


def run_all(
    runs: list[Run],
    barred: Mapping[str, str] | None = None,
    diagnose: Callable[[Run, str], str | None] = lambda run, reason: None,
) -> dict[str, str]:
    """Execute what is not finished; what another start is at, after the others.

    Args:
        runs: in this order.
        barred: task -> why it cannot run here.
        diagnose: called once, when a run has failed before its first sample and none has answered
            one: that run and its reason -> why nothing at all can run, which ends the whole; or
            None, and the others go on.

    Returns:
        The failures, label -> reason.
    """
    failures, works = {}, False
    todo = deque((f"[{n}/{len(runs)}] {run.label}", run, False) for n, run in enumerate(runs, 1))
    while todo:
        head, run, at_the_end = todo.popleft()
        if run.finished:
            by = "by another start" if at_the_end else "before"
            print(f"{head}: finished {by}, kept in {run.folder}", flush=True)
            continue
        if barred and run.task in barred:
            failures[run.label] = barred[run.task]
            print(f"{head}: left out: {barred[run.task]}", flush=True)
            continue
        if at_the_end:
            print(f"{head}: waiting for {holder(run.lock)}", flush=True)
        with locked(run.lock, wait=at_the_end) as ours:
            if not ours:
                print(f"{head}: {holder(run.lock)}, is at it; the others first", flush=True)
            if not ours or run.finished:  # in the meantime
                todo.append((head, run, True))
                continue
            print(f"{head}: running", flush=True)
            start = time.monotonic()
            reason = run.execute()
        took = f"{time.monotonic() - start:.0f} s"
        if reason is None:
            print(f"{head}: done in {took}", flush=True)
            works = True
            continue
        failures[run.label] = reason
        print(f"{head}: FAILED after {took}: {reason}", flush=True)
        print(f"    log: {run.failed_folder / 'log.txt'}", flush=True)
        if not (works or run.answered):
            fault = diagnose(run, reason)
            if fault is not None:
                print(STOPPED.format(fault=fault), flush=True)
                return {"every run": fault}
        works = True
    return failures
