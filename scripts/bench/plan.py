"""What bench_*.sh runs, every (budget, task) in turn, and the tables of what has finished."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch

from hiprune.config import DEFAULT_ALPHA
from scripts.bench.engine import BATCH
from scripts.bench.identity import SEED
from scripts.bench.process import Run
from scripts.bench.settings import Settings
from scripts.benchmarks import SMALL_ENGINE
from scripts.numbers import number
from scripts.tables.columns import TINY_TASK
from scripts.tables.layouts import render
from scripts.tables.paper import UNPRUNED
from scripts.tables.runs import Table, read_tables


def plan(settings: Settings) -> list[Run]:
    """All runs, budget by budget; each in a folder that its settings name."""
    limit = f"_limit-{settings.limit}" if settings.limit else ""
    alpha, layer = settings.config.alpha, settings.config.object_layer
    variant = "".join(f"_{name}-{value}" for name, value in settings.config.variant().items())
    runs = []
    for budget in settings.budgets:
        name = setting = UNPRUNED
        environment = {}
        if budget != UNPRUNED:
            name = ", ".join(
                [f"N' = {budget}" + (" N" if "." in budget else ""), *_changed(settings)]
            )
            setting = f"retention-{budget}_alpha-{alpha:g}_layer-{layer}{variant}"
            config = replace(settings.config, retention=number(budget))
            environment |= config.variables(settings.benchmark.family)
        if settings.identity is not None:
            environment["HIPRUNE_RUN"] = json.dumps(settings.identity)
        if not torch.cuda.is_available():
            environment["ACCELERATE_USE_CPU"] = "true"
        if settings.engine and settings.tiny:
            environment |= SMALL_ENGINE
        if settings.tiny:
            environment.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
        for task in settings.tasks:
            runs.append(
                Run(
                    label=f"{name}, {task}",
                    command=lambda folder, budget=budget, task=task: _command(
                        settings, budget, task, folder
                    ),
                    environment=environment,
                    folder=settings.folder / (setting + limit) / task,
                )
            )
    return runs


def _changed(settings: Settings) -> list[str]:
    """What a run's label says of settings that are not the family's defaults."""
    config = settings.config
    found = [] if config.alpha == DEFAULT_ALPHA else [f"alpha {config.alpha:g}"]
    found += (
        [] if config.object_layer == settings.object_layer else [f"layer {config.object_layer}"]
    )
    return found + [f"{name} {value}" for name, value in config.variant().items()]


def _command(settings: Settings, budget: str, task: str, folder: Path) -> list[str]:
    model_args = {
        **settings.model_args,
        "prune": budget != UNPRUNED,
        "device_map": "cuda:0" if torch.cuda.is_available() else "cpu",
    }
    command = [sys.executable, "-W", "ignore", "-m"]
    # Without accelerate's launcher, whose configuration file is the user's and of anything.
    if settings.processes > 1:
        command += ["torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(settings.processes), "-m"]
    command += ["lmms_eval", "--model", settings.benchmark.model]
    command += ["--model_args", ",".join(map(_argument, model_args.items()))]
    batch = BATCH if settings.engine else 1
    command += ["--tasks", task, "--batch_size", str(batch), "--log_samples"]
    command += ["--output_path", str(folder)]
    command += ["--seed", SEED]
    if task == TINY_TASK:
        command += ["--include_path", str(settings.benchmark.tiny.task_folder)]
    if settings.limit:
        command += ["--limit", str(settings.limit)]
    return command


def _argument(pair: tuple[str, object]) -> str:
    """An argument of lmms-eval's model; one that would be split, or taken for a number, quoted."""
    name, value = pair
    if isinstance(value, str) and not (re.fullmatch(r"[\w./@:+~ -]+", value) and _is_text(value)):
        quote = "'" if '"' in value else '"'
        value = f"{quote}{value}{quote}"
    return f"{name}={value}"


def _is_text(value: str) -> bool:
    """Whether lmms-eval leaves an argument the text that it is: no number, true or false."""
    try:
        float(value)
    except ValueError:
        return value.lower() not in ("true", "false")
    return False


def finished_tables(settings: Settings) -> list[Table]:
    """Of all finished runs of this checkpoint with this limit."""
    if not settings.folder.is_dir():
        return []
    return [
        table
        for table in read_tables(settings.folder, lambda fault: print(f"left out: {fault}"))
        if (int(table.limit) if table.limit else None) == settings.limit
    ]


def print_tables(settings: Settings) -> None:
    """The tables of all that has finished with these settings, also kept as a file."""
    folder, tables = settings.folder, finished_tables(settings)
    config = settings.config
    wanted = (config.alpha, config.object_layer, config.variant())
    ours = [t for t in tables if (t.alpha, t.object_layer, t.variant) in (wanted, (None, None, {}))]
    tables = ours or tables  # nothing but the unpruned row is of these settings
    if not tables:
        return
    text = "\n\n".join(render(table) for table in tables)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\ntable: {folder / 'table.md'}")
