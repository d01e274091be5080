"""The paper's ablations behind ablation.sh: every setting in turn; tables, sweeps drawn."""

from __future__ import annotations

from dataclasses import replace

from hiprune import HiPruneConfig, HiPruneError
from scripts.bench.plan import finished_tables, plan
from scripts.bench.process import Run
from scripts.bench.settings import Settings, read_settings
from scripts.benchmarks import Benchmark
from scripts.numbers import number
from scripts.tables.ablations import all_fields, scores_of, sweeps
from scripts.tables.paper import UNPRUNED, short_name
from scripts.tables.summaries import draw_sweeps, render_ablations

# Of the paper's Tables 6 and 11; a family's benchmark may lack some of them.
TASKS = ("gqa", "mme", "pope", "vizwiz_vqa_val")


def read(benchmark: Benchmark, tiny: bool, env: dict[str, str]) -> Settings:
    """The settings of the default method, at one budget.

    Raises:
        HiPruneError: a variable with an unexpected value, or that the ablation itself sets.
    """
    for name in env:
        if name.startswith("HIPRUNE_") and name != benchmark.retention_variable:
            raise HiPruneError(
                f"{name}={env[name]!r}: expected only {benchmark.retention_variable}, since "
                "the ablation sets the others itself"
            )
    if "RETENTIONS" in env:
        raise HiPruneError(
            f"RETENTIONS={env['RETENTIONS']!r}: expected one budget, {benchmark.retention_variable}"
        )
    if not tiny and "TASKS" not in env:
        env = {**env, "TASKS": " ".join(t for t in TASKS if t in benchmark.tasks)}
    # The largest of the paper's budgets is that of its ablations.
    first = str((benchmark.tiny if tiny else benchmark).retentions[0])
    return read_settings(benchmark, tiny, {benchmark.retention_variable: first, **env})


def runs(settings: Settings) -> list[Run]:
    found = plan(replace(settings, budgets=(UNPRUNED,)))
    family = settings.benchmark.family
    for fields in all_fields(family, _swept(settings), settings.object_layer):
        found += plan(replace(settings, config=replace(settings.config, **fields)))
    return found


def _swept(settings: Settings) -> dict[str, tuple]:
    return sweeps(settings.benchmark, settings.tiny, settings.object_layer)


def report(settings: Settings) -> None:
    """Print the tables; keep them, and the sweeps' picture, beside the runs."""
    family, budget = settings.benchmark.family, number(settings.budgets[0])
    found = finished_tables(settings)

    def config(**fields: object) -> HiPruneConfig:
        return replace(settings.config, **fields)

    scores = scores_of(found, budget)
    if not scores(config()):
        print("\nno table: the run with the default settings has not finished")
        return
    text = render_ablations(family, settings.checkpoint, budget, config, scores)
    file = settings.folder / "ablation.md"
    file.write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\ntable: {file}")
    unpruned = next((t.rows[UNPRUNED] for t in found if UNPRUNED in t.rows), None)
    title = f"{short_name(settings.checkpoint)}, N' = {budget}: alpha and the object layer"
    if draw_sweeps(_swept(settings), title, unpruned, config, scores, file.with_suffix(".png")):
        print(f"sweeps: {file.with_suffix('.png')}")
