"""The evaluation behind bench_*.sh: every (budget, task) in turn, resumable; a table at the end.

Called by the shell scripts, which make the environment and hand over the variables that their
--help lists.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_run import Run
from benchmarks import BENCHMARKS, ROOT, Benchmark
from make_tables import read_tables, render
from paper import UNPRUNED, short_name

from hiprune import HiPruneConfig, HiPruneError


@dataclass(frozen=True)
class Settings:
    """What one call evaluates, from the variables or the family's defaults."""

    benchmark: Benchmark
    tiny: bool
    checkpoint: str
    tasks: tuple[str, ...]
    budgets: tuple[str, ...]  # "unpruned" or N', as the variables spell it
    processes: int
    limit: int | None
    output: Path
    config: HiPruneConfig  # alpha and l are those of every pruned run


def read_settings(benchmark: Benchmark, tiny: bool, env: dict[str, str]) -> Settings:
    """Check everything that can be checked before hours of work.

    Raises:
        HiPruneError: a variable that is set to anything not accepted.
    """
    single, several = env.get(benchmark.retention_variable), env.get("RETENTIONS")
    if single is not None and several is not None:
        raise HiPruneError(
            f"{benchmark.retention_variable}={single!r} and RETENTIONS={several!r}: accepted is "
            "one of the two"
        )
    if single is not None:
        budgets = (single,)
    elif several is not None:
        budgets = _words("RETENTIONS", several, f"'{UNPRUNED}' and budgets")
    else:
        budgets = (UNPRUNED, *map(str, benchmark.retentions))
    others = {name: value for name, value in env.items() if name != benchmark.retention_variable}
    config = HiPruneConfig.from_env(benchmark.family, others)
    for budget in budgets:
        if budget != UNPRUNED:
            try:
                HiPruneConfig.from_env(benchmark.family, {benchmark.retention_variable: budget})
            except HiPruneError as error:
                if single is not None:
                    raise
                raise HiPruneError(f"RETENTIONS={several!r}: {error}") from None
    tasks = ("hiprune_tiny",) if tiny else benchmark.tasks
    if "TASKS" in env:
        tasks = _words("TASKS", env["TASKS"], "names of lmms-eval tasks")
    return Settings(
        benchmark=benchmark,
        tiny=tiny,
        checkpoint=env.get("CKPT") or _default_checkpoint(benchmark, tiny),
        tasks=tasks,
        budgets=budgets,
        processes=_count(env, "NUM_PROCESSES", 1),
        limit=_count(env, "LIMIT", None),
        output=Path(env.get("OUTPUT") or ROOT / "logs").resolve(),
        config=config,
    )


def _default_checkpoint(benchmark: Benchmark, tiny: bool) -> str:
    return str(ROOT / ".tiny" / benchmark.tiny_checkpoint) if tiny else benchmark.checkpoint


def _words(name: str, text: str, what: str) -> tuple[str, ...]:
    words = tuple(re.split(r"[\s,]+", text.strip()))
    if not all(words):
        raise HiPruneError(f"{name}={text!r}: accepted are {what}, separated by spaces or commas")
    return words


def _count(env: dict[str, str], name: str, default: int | None) -> int | None:
    text = env.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise HiPruneError(f"{name}={text!r}: accepted is an integer of at least 1")
    return int(text)


def plan(settings: Settings) -> list[Run]:
    """All runs, budget by budget; each in a folder that its settings name."""
    checkpoint = short_name(settings.checkpoint)
    limit = f"_limit-{settings.limit}" if settings.limit else ""
    alpha, layer = settings.config.alpha, settings.config.object_layer
    runs = []
    for budget in settings.budgets:
        setting = UNPRUNED
        environment = {}
        if budget != UNPRUNED:
            setting = f"retention-{budget}_alpha-{alpha:g}_layer-{layer}"
            environment[settings.benchmark.retention_variable] = budget
        if settings.tiny:
            environment.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
        for task in settings.tasks:
            runs.append(
                Run(
                    label=f"{'unpruned' if budget == UNPRUNED else f'N´ = {budget}'}, {task}",
                    command=lambda folder, budget=budget, task=task: _command(
                        settings, budget, task, folder
                    ),
                    environment=environment,
                    folder=settings.output / checkpoint / (setting + limit) / task,
                )
            )
    return runs


def _command(settings: Settings, budget: str, task: str, folder: Path) -> list[str]:
    cuda = torch.cuda.is_available()
    # float16 is what the released checkpoints are and what lmms-eval's llava runs in; on a CPU it
    # is many times slower than float32.
    model_args = {
        "pretrained": settings.checkpoint,
        "prune": budget != UNPRUNED,
        "dtype": "float16" if cuda else "float32",
        "device_map": "cuda:0" if cuda else "cpu",
    }
    launch = [
        "--num_processes", str(settings.processes), "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ]  # fmt: skip
    if not cuda:
        launch.append("--cpu")
    elif settings.processes > 1:
        launch.append("--multi_gpu")
    command = [sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch", *launch]
    command += ["-m", "lmms_eval", "--model", settings.benchmark.model]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in model_args.items())]
    command += ["--tasks", task, "--batch_size", "1", "--log_samples", "--output_path", str(folder)]
    if settings.tiny:
        command += ["--include_path", str(ROOT / ".tiny" / "tasks")]
    if settings.limit:
        command += ["--limit", str(settings.limit)]
    return command


def make_tiny(benchmark: Benchmark) -> None:
    """The checkpoint and the task of --tiny, unless they are there."""
    from make_tiny_checkpoint import make_checkpoint
    from make_tiny_task import make_task

    makers = {
        benchmark.tiny_checkpoint: lambda path: make_checkpoint(path, benchmark.family),
        "tasks": make_task,
    }
    for name, make in makers.items():
        path = ROOT / ".tiny" / name
        # The folder's own path is in what was made, and the maker may have changed since.
        mark = f"{path} {(ROOT / 'scripts').stat().st_dev} {_fingerprint()}"
        done = path / "complete"
        if not done.is_file() or done.read_text() != mark:
            print(f"making {path}", flush=True)
            make(path)
            done.write_text(mark)


def _fingerprint() -> str:
    import hashlib

    makers = [ROOT / "scripts" / f"make_tiny_{what}.py" for what in ("checkpoint", "task")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in makers)).hexdigest()


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=BENCHMARKS, required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    try:
        settings = read_settings(BENCHMARKS[args.family], args.tiny, dict(os.environ))
    except HiPruneError as error:
        print(error, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    runs = plan(settings)
    try:
        if settings.tiny:
            make_tiny(settings.benchmark)
        failures = run_all(runs)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on with the run that it was at", flush=True)
        return 130
    print_tables(settings, runs)
    for label, reason in failures.items():
        print(f"FAILED {label}: {reason}")
    return 1 if failures else 0


def print_tables(settings: Settings, runs: list[Run]) -> None:
    """The tables of all that has finished with these settings, also kept as a file."""
    folder = runs[0].folder.parents[1]
    if not folder.is_dir():
        return
    wanted = (settings.config.alpha, settings.config.object_layer)
    tables = [
        table
        for table in read_tables(folder)
        if (table.alpha, table.object_layer) in (wanted, (None, None))
        and (int(table.limit) if table.limit else None) == settings.limit
    ]
    if not tables:
        return
    text = "\n\n".join(render(table) for table in tables)
    (folder / "table.md").write_text(text + "\n")
    print(f"\n{text}\n\ntable: {folder / 'table.md'}")


if __name__ == "__main__":
    sys.exit(main())
