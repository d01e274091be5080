"""ENGINE=vllm: what a benchmark becomes where vLLM answers in the place of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from hiprune.models.vllm_plugin import engine_name

from hiprune import HiPruneError
from scripts.bench.checkpoint import OF_THE_PACKAGE
from scripts.benchmarks import Benchmark

ENGINES = ("transformers", "vllm")
BATCH = 64  # questions that an engine has at once; it makes its own batches of them


def with_engine(
    benchmark: Benchmark, tiny: bool, env: Mapping[str, str], processes: int
) -> tuple[Benchmark, str | None, dict[str, object]]:
    """What an evaluation becomes by ENGINE, ENGINE_ARGS and NUM_PROCESSES.

    Returns:
        The benchmark; the engine with its version, None of transformers; the engine's arguments.

    Raises:
        HiPruneError: an engine that is not known, not installed, or does not take such checkpoints.
    """
    engine, given = env.get("ENGINE") or ENGINES[0], env.get("ENGINE_ARGS", "").split()
    if engine not in ENGINES:
        raise HiPruneError(f"ENGINE={engine!r}: expected {' or '.join(ENGINES)}")
    if engine == ENGINES[0]:
        if given:
            raise HiPruneError(
                f"ENGINE_ARGS={env['ENGINE_ARGS']!r}: expected with ENGINE=vllm alone"
            )
        return benchmark, None, {}
    if benchmark.model == OF_THE_PACKAGE:
        raise HiPruneError(
            "ENGINE='vllm' with a checkpoint of the `llava` package: expected one of transformers "
            "(--hf)"
        )
    try:
        name = engine_name()
    except HiPruneError as error:
        raise HiPruneError(f"ENGINE='vllm': {error}, as setup_vllm.sh installs it") from error
    found = dict(benchmark.tiny.engine_args) if tiny else {}
    if processes > 1:
        found["tensor_parallel_size"] = processes
    found |= dict(map(_argument, given))
    arguments = {n: v for n, v in benchmark.model_args.items() if n != "attn_implementation"}
    return replace(benchmark, model=f"{benchmark.model}_vllm", model_args=arguments), name, found


def _argument(text: str) -> tuple[str, object]:
    """max_model_len=4096 -> ("max_model_len", 4096)."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise HiPruneError(f"ENGINE_ARGS: {text!r}: expected name=value, separated by spaces")
    try:
        found = json.loads(value.lower() if value in ("True", "False") else value)
    except ValueError:
        found = value
    return name, found if isinstance(found, (bool, int, float)) else value
