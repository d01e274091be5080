"""The paper's ablations behind ablation.sh: every setting in turn, resumable; tables, sweeps drawn.

Called by ablation.sh, which makes the environment and hands over the variables that its --help
lists.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from ablation_report import draw_sweeps, render, scores_of
from ablation_settings import all_fields, sweeps
from bench import finished_tables, number, plan
from bench_program import program
from bench_run import Run
from bench_settings import Settings, read_settings
from benchmarks import Benchmark
from paper import UNPRUNED, short_name

from hiprune import HiPruneConfig, HiPruneError

# Of the paper's Tables 6 and 11; a family's benchmark may lack some of them.
TASKS = ("gqa", "mme", "pope", "vizwiz_vqa_val")


def read(benchmark: Benchmark, tiny: bool, env: dict[str, str]) -> Settings:
    """The settings of the default method, at one budget.

    Raises:
        HiPruneError: a variable with what is not accepted, or that the ablation itself sets.
    """
    for name in env:
        if name.startswith("HIPRUNE_") and name != benchmark.retention_variable:
            raise HiPruneError(
                f"{name}={env[name]!r}: accepted is only {benchmark.retention_variable}, since "
                "the ablation sets the others itself"
            )
    if "RETENTIONS" in env:
        raise HiPruneError(
            f"RETENTIONS={env['RETENTIONS']!r}: accepted is one budget, "
            f"{benchmark.retention_variable}"
        )
    if not tiny and "TASKS" not in env:
        env = {**env, "TASKS": " ".join(t for t in TASKS if t in benchmark.tasks)}
    # The largest of the paper's budgets is that of its ablations.
    first = str((benchmark.tiny if tiny else benchmark).retentions[0])
    return read_settings(benchmark, tiny, {benchmark.retention_variable: first, **env})


def main() -> int:
    return program(__doc__, read, _runs, report)


def _runs(settings: Settings) -> list[Run]:
    runs = plan(replace(settings, budgets=(UNPRUNED,)))
    family = settings.benchmark.family
    for fields in all_fields(family, _swept(settings), settings.object_layer):
        runs += plan(replace(settings, config=replace(settings.config, **fields)))
    return runs


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
    text = render(family, settings.checkpoint, budget, config, scores)
    file = settings.folder / "ablation.md"
    file.write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\ntable: {file}")
    unpruned = next((t.rows[UNPRUNED] for t in found if UNPRUNED in t.rows), None)
    title = f"{short_name(settings.checkpoint)}, N' = {budget}: alpha and the object layer"
    if draw_sweeps(_swept(settings), title, unpruned, config, scores, file.with_suffix(".png")):
        print(f"sweeps: {file.with_suffix('.png')}")


if __name__ == "__main__":
    sys.exit(main())
