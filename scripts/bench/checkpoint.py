"""CKPT of any registered family: what a benchmark becomes for it, by the checkpoint alone."""

from __future__ import annotations

from dataclasses import replace

from hiprune import HiPruneError
from hiprune.lmms.checkpoint import Description, describe
from scripts.benchmarks import BENCHMARKS, HF_ARGS, Benchmark

SHARES = (1 / 3, 2 / 9, 1 / 9)  # the paper's budgets of LLaVA-1.5, and nearly those of Qwen2.5-VL
OF_THE_PACKAGE = "llava_hiprune"  # whose checkpoints are of a format, and a family, of their own


def of_checkpoint(benchmark: Benchmark, checkpoint: str) -> Benchmark:
    """Family, model, budgets and l as the checkpoint's configuration has them.

    Raises:
        HiPruneError: it has none, or one of no registered family.
    """
    if benchmark.model == OF_THE_PACKAGE or checkpoint == benchmark.checkpoint:
        return benchmark
    found = _described(checkpoint)
    family = found.family
    if family.name != benchmark.family:
        known = [one for one in BENCHMARKS.values() if one.family == family.name]
        known = [one for one in known if one.model != OF_THE_PACKAGE]
        if known:
            benchmark = replace(known[0], tasks=benchmark.tasks)
        else:
            tokens = family.max_retention
            share = isinstance(family.retention, float)
            benchmark = replace(
                benchmark,
                family=family.name,
                model="hiprune_hf",
                retentions=tuple(round(s, 3) if share else round(s * tokens) for s in SHARES),
                retention_variable=family.retention_variable,
                dtype="bfloat16",
                model_args=HF_ARGS,
            )
    retentions = benchmark.retentions
    # The same shares of fewer tokens.
    part = 1 if found.tokens is None else found.tokens / family.max_retention
    if isinstance(family.max_retention, int) and part < 1:
        retentions = tuple(max(1, round(budget * part)) for budget in retentions)
    layer = family.layer_of(found.layers)
    return replace(benchmark, retentions=retentions, object_layer=layer)


def check_tiny(benchmark: Benchmark, checkpoint: str) -> None:
    """Raise for a checkpoint of another family, whose budgets and questions are not --tiny's."""
    if benchmark.model == OF_THE_PACKAGE:
        return
    name = _described(checkpoint).family.name
    if name != benchmark.family:
        raise HiPruneError(
            f"CKPT={checkpoint!r}: a checkpoint of {name!r}; expected with --tiny one of "
            f"{benchmark.family!r}, whose budgets and questions these are"
        )


def _described(checkpoint: str) -> Description:
    try:
        return describe(checkpoint)
    except HiPruneError as error:
        raise HiPruneError(str(error).replace("checkpoint=", "CKPT=", 1)) from error
