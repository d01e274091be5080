"""The variables of bench_*.sh, checked before hours of work."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hiprune import HiPruneConfig, HiPruneError
from hiprune.config import FAMILIES
from scripts.bench.checkpoint import check_tiny, of_checkpoint
from scripts.bench.engine import with_engine
from scripts.benchmarks import ROOT, Benchmark
from scripts.numbers import integer
from scripts.tables.columns import TINY_TASK
from scripts.tables.paper import UNPRUNED

LEAST_SHARE = 0.0005  # of the 2,048 tokens that Qwen2.5-VL's processor makes at most


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
    identity: dict[str, object] | None = None  # what else decides a score: identity.py
    engine: str | None = None  # "vllm 0.33.0", which answers in the place of transformers
    engine_args: dict[str, object] = field(default_factory=dict)  # its own

    @property
    def name(self) -> str:
        """The checkpoint in a folder's name; checkpoints of one name in two places are two."""
        path = Path(self.checkpoint)
        if path == self.benchmark.tiny.checkpoint:
            suffix = "-hf" if self.benchmark.model.startswith("llava_hf_hiprune") else ""
            return f"{path.name}{suffix}"
        # lmms-eval splits its arguments at commas, and takes brackets and quotes for its own.
        return re.sub(r"[^\w.+@-]", "_", self.checkpoint.strip("/").replace("/", "__"))

    @property
    def asks_tiny(self) -> bool:
        """Is the task of --tiny among the tasks, of whatever checkpoint?"""
        return TINY_TASK in self.tasks

    @property
    def folder(self) -> Path:
        """Of all runs of this checkpoint with this identity."""
        if self.identity is None:
            return self.output / self.name
        text = json.dumps([self.checkpoint, self.identity], sort_keys=True)
        return self.output / f"{self.name}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def model_args(self) -> dict[str, object]:
        """Of lmms-eval's model, those of all runs: the checkpoint, and what decides an answer."""
        # On a CPU the halves are many times slower than float32.
        dtype = self.benchmark.dtype if torch.cuda.is_available() else "float32"
        found = {"pretrained": self.checkpoint, "dtype": dtype, **self.benchmark.model_args}
        found |= self.benchmark.tiny.model_args if self.tiny else {}
        return found | self.engine_args

    @property
    def object_layer(self) -> int:
        """The default l."""
        return _object_layer(self.benchmark, self.tiny)


def read_settings(benchmark: Benchmark, tiny: bool, env: dict[str, str]) -> Settings:
    """Check everything that can be checked before hours of work.

    Raises:
        HiPruneError: a variable that is set to anything unexpected.
    """
    if env.get("CKPT") and tiny:
        check_tiny(benchmark, env["CKPT"])
    elif env.get("CKPT"):
        benchmark = of_checkpoint(benchmark, env["CKPT"])
    processes = integer(env.get("NUM_PROCESSES", "1"), 1, name="NUM_PROCESSES")
    benchmark, engine, engine_args = with_engine(benchmark, tiny, env, processes)
    env = {"HIPRUNE_OBJECT_LAYER": str(_object_layer(benchmark, tiny)), **env}
    single, several = env.get(benchmark.retention_variable), env.get("RETENTIONS")
    if single is not None and several is not None:
        raise HiPruneError(
            f"{benchmark.retention_variable}={single!r} and RETENTIONS={several!r}: expected "
            "one of the two"
        )
    if single is not None:
        HiPruneConfig.from_env(benchmark.family, env)  # "unpruned" is for RETENTIONS
        budgets = (single,)
    elif several is not None:
        budgets = _words("RETENTIONS", several, f"'{UNPRUNED}' and budgets")
    else:
        retentions = benchmark.tiny.retentions if tiny else benchmark.retentions
        budgets = (UNPRUNED, *map(str, retentions))
    others = {name: value for name, value in env.items() if name != benchmark.retention_variable}
    config = HiPruneConfig.from_env(benchmark.family, others)
    try:
        budgets = tuple(_budget(benchmark, text) for text in budgets)
    except HiPruneError as error:
        name = "RETENTIONS" if single is None else benchmark.retention_variable
        value = several if single is None else single
        raise HiPruneError(f"{name}={value!r}: {error}") from None
    tasks = (TINY_TASK,) if tiny else benchmark.tasks
    if "TASKS" in env:
        tasks = _words("TASKS", env["TASKS"], "names of lmms-eval tasks")
    return Settings(
        benchmark=benchmark,
        tiny=tiny,
        checkpoint=env.get("CKPT") or _default_checkpoint(benchmark, tiny),
        tasks=tasks,
        budgets=budgets,
        processes=1 if engine else processes,  # which starts its own
        limit=integer(env["LIMIT"], 1, name="LIMIT") if "LIMIT" in env else None,
        output=Path(env.get("OUTPUT") or ROOT / "logs").resolve(),
        config=config,
        engine=engine,
        engine_args=engine_args,
    )


def _budget(benchmark: Benchmark, text: str) -> str:
    """A budget as its folder is named: 64 however it was written, or "unpruned"."""
    if text == UNPRUNED:
        return text
    variables = {benchmark.retention_variable: text}
    budget = HiPruneConfig.from_env(benchmark.family, variables).retention
    if isinstance(budget, float) and budget < LEAST_SHARE:
        raise HiPruneError(
            f"{text!r}: expected a share of at least {LEAST_SHARE:g}, which is one token of the "
            "largest image"
        )
    return str(budget)


def _default_checkpoint(benchmark: Benchmark, tiny: bool) -> str:
    return str(benchmark.tiny.checkpoint) if tiny else benchmark.checkpoint


def _object_layer(benchmark: Benchmark, tiny: bool) -> int:
    if tiny:
        return benchmark.tiny.object_layer
    return benchmark.object_layer or FAMILIES[benchmark.family].object_layer


def _words(name: str, text: str, what: str) -> tuple[str, ...]:
    words = tuple(re.split(r"[\s,]+", text.strip()))
    if not all(words):
        raise HiPruneError(f"{name}={text!r}: expected {what}, separated by spaces or commas")
    return words
