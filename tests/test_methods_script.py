"""methods.sh: which runs it makes, and the table and the curve that come of finished ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from table_logs import Logs

from hiprune import HiPruneConfig, HiPruneError
from scripts.bench.methods import SEEDS, configs, read, report
from scripts.bench.plan import plan
from scripts.benchmarks import BENCHMARKS
from scripts.tables.columns import TINY_TASK, are_accuracies
from scripts.tables.summaries import Curve, render_methods, score

KINDS = ("existence", "colour", "shape", "count", "position")
# Runs a budget: ten methods, three of random. Qwen has no CLS; a small LLaVA reads no text.
METHODS = {"llava": 12, "llava_next": 12, "qwen2_5_vl": 8}


def tiny_scores(value):
    names = ("existence_accuracy", "existence_f1", *KINDS[1:])
    return {f"{name},none": value if name != "existence_f1" else 0.1 for name in names}


@pytest.mark.parametrize("tiny", [True, False])
@pytest.mark.parametrize("family", METHODS)
def test_every_method_runs_once_at_every_budget(family, tiny):
    benchmark = BENCHMARKS[family]
    settings = read(benchmark, tiny, {"TASKS": "pope"})
    count = METHODS[family] - (2 if tiny and family != "qwen2_5_vl" else 0)
    budgets = benchmark.tiny.curve if tiny else benchmark.retentions
    assert settings.budgets == ("unpruned", *map(str, budgets))
    several = [config for group in configs(settings).values() for config in group]
    runs = [run for c in several for run in plan(replace(settings, config=c))]
    pruned = [run for run in runs if run.environment.get(benchmark.retention_variable)]
    assert len({run.folder for run in pruned}) == len(pruned) == count * len(budgets)
    found = [HiPruneConfig.from_env(family, run.environment) for run in pruned]
    assert sorted({(c.method, c.seed) for c in found}) == sorted(
        {(c.method, c.seed) for c in several}
    )
    assert {c.object_layer for c in found} == {settings.object_layer}


def test_what_the_comparison_sets_itself_is_refused():
    for name in ("HIPRUNE_METHOD", "HIPRUNE_SEED", "HIPRUNE_RETENTION", "HIPRUNE_BUFFER"):
        with pytest.raises(HiPruneError, match=rf"^{name}='1': expected only HIPRUNE_ALPHA"):
            read(BENCHMARKS["llava"], True, {name: "1"})
    settings = read(BENCHMARKS["llava"], True, {"HIPRUNE_ALPHA": "0.5", "RETENTIONS": "9"})
    assert settings.budgets == ("9",)
    alphas = {name: {c.alpha for c in group} for name, group in configs(settings).items()}
    assert alphas.pop("hiprune") == {0.5}
    assert set(alphas) > {"uniform", "random", "cls", "scope"}
    assert set.union(*alphas.values()) == {0.1}


def test_table_and_curve_of_finished_runs(tmp_path, capsys):
    chosen = {"OUTPUT": str(tmp_path), "RETENTIONS": "unpruned 72 48 32"}
    settings = read(BENCHMARKS["llava"], True, chosen)
    logs = Logs(settings.folder)
    here = {"checkpoint": settings.checkpoint, "object_layer": settings.object_layer}
    logs.write(TINY_TASK, tiny_scores(0.9), **here, tokens=144.0)
    for budget in (72, 48):
        logs.write(TINY_TASK, tiny_scores(0.8), budget, **here)
        for seed in SEEDS:
            variant = {"method": "random", "seed": seed}
            logs.write(TINY_TASK, tiny_scores(0.5 + seed / 10), budget, **here, variant=variant)
    report(settings)
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["all", "unpruned", "90.0", "10.0", *["90.0"] * 5, ""] in rows
    assert ["72", "HiPrune", "80.0", "10.0", *["80.0"] * 5, ""] in rows
    assert ["48", "random (3 seeds)", "60.0", "10.0", *["60.0"] * 5, "50.0 to 70.0"] in rows
    assert ["32", "HiPrune", *["–"] * 7, ""] in rows  # has not run
    assert ["72", "uniform", *["–"] * 7, ""] in rows
    assert (settings.folder / "methods.md").read_text() in text
    assert (settings.folder / "methods.png").stat().st_size > 5000


def test_nothing_is_drawn_before_the_unpruned_run(tmp_path, capsys):
    settings = read(BENCHMARKS["llava"], True, {"OUTPUT": str(tmp_path)})
    settings.folder.mkdir()
    report(settings)
    assert "the unpruned run has not finished" in capsys.readouterr().out
    assert not list(settings.folder.iterdir())


def test_real_tasks_are_averaged_as_shares_of_the_unpruned():
    base, row = {"pope": 80.0, "mme": 2000.0}, {"pope": 40.0, "mme": 1500.0}
    assert score(row, base, accuracies=False) == pytest.approx((50 + 75) / 2)
    assert score({"pope": 40.0}, base, accuracies=False) is None  # a task is missing
    assert not are_accuracies(base) and are_accuracies([f"{TINY_TASK}/colour"])
    text = render_methods("x", base, [Curve("hiprune", {64: [row]}, {64: 64.0})], accuracies=False)
    assert "62.5" in text and "avg %" in text
