"""HiPrune beside other methods behind methods.sh: every budget in turn; table, curve."""

from __future__ import annotations

from dataclasses import replace

import hiprune
from hiprune import HiPruneConfig, HiPruneError
from hiprune.config import DEFAULT_ALPHA
from scripts.bench.plan import finished_tables, plan
from scripts.bench.process import Run
from scripts.bench.settings import Settings, read_settings
from scripts.benchmarks import Benchmark
from scripts.numbers import number
from scripts.tables.ablations import table_of
from scripts.tables.columns import are_accuracies
from scripts.tables.paper import UNPRUNED, short_name
from scripts.tables.summaries import curve_of, draw_methods, render_methods

SEEDS = (0, 1, 2)
WITH_ALPHA = ("hiprune", "hiprune_pp")
OURS = ("HIPRUNE_ALPHA", "HIPRUNE_OBJECT_LAYER")


def read(benchmark: Benchmark, tiny: bool, env: dict[str, str]) -> Settings:
    """The settings of HiPrune's runs, at every budget of the curve.

    Raises:
        HiPruneError: a variable with an unexpected value, or that the comparison itself sets.
    """
    for name in env:
        if name.startswith("HIPRUNE_") and name not in OURS:
            raise HiPruneError(
                f"{name}={env[name]!r}: expected only {' and '.join(OURS)}, since the "
                "comparison sets the others itself; budgets are in RETENTIONS"
            )
    curve = benchmark.tiny.curve if tiny else benchmark.retentions
    env = {"RETENTIONS": " ".join(map(str, (UNPRUNED, *curve))), **env}
    return read_settings(benchmark, tiny, env)


def configs(settings: Settings) -> dict[str, list[HiPruneConfig]]:
    """Method -> its configurations, one a seed."""
    ours, found = settings.config, {}
    plain = replace(ours, alpha=DEFAULT_ALPHA)  # the others have no alpha: one folder for all
    for name in hiprune.methods():
        config = replace(ours if name in WITH_ALPHA else plain, method=name)
        if can_run(settings.benchmark.family, settings.tiny, config):
            seeds = SEEDS if name == "random" else (config.seed,)
            found[name] = [replace(config, seed=seed) for seed in seeds]
    return found


def can_run(family: str, tiny: bool, config: HiPruneConfig) -> bool:
    """Has a model of this family, or its small trained one, what the method looks at?"""
    qwen = family == "qwen2_5_vl"  # no class token; its words are its own
    # The small LLaVA's tower was not trained with a text encoder.
    text = "text_embeds" in config.needs and tiny and not qwen
    return not text and not (config.uses_cls and qwen)


def runs(settings: Settings) -> list[Run]:
    found = plan(replace(settings, budgets=(UNPRUNED,)))
    for config in (config for several in configs(settings).values() for config in several):
        found += plan(replace(settings, config=config, budgets=_pruned(settings)))
    return found


def _pruned(settings: Settings) -> tuple[str, ...]:
    return tuple(budget for budget in settings.budgets if budget != UNPRUNED)


def report(settings: Settings) -> None:
    """Print the table; keep it, and the curve's picture, beside the runs."""
    budgets = [number(budget) for budget in _pruned(settings)]
    found = finished_tables(settings)
    base = next((table.rows[UNPRUNED] for table in found if UNPRUNED in table.rows), None)
    if base is None:
        print("\nno table: the unpruned run has not finished")
        return
    curves = [
        curve_of(method, [table_of(found, config) for config in several], budgets)
        for method, several in configs(settings).items()
    ]
    accuracies = are_accuracies(base)
    text = render_methods(short_name(settings.checkpoint), base, curves, accuracies)
    file = settings.folder / "methods.md"
    file.write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\ntable: {file}")
    title = f"{short_name(settings.checkpoint)}: score over kept tokens"
    if draw_methods(title, base, curves, accuracies, file.with_suffix(".png")):
        print(f"curve: {file.with_suffix('.png')}")
