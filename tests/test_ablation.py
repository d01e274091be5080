"""The ablation: which runs it makes, and the tables and the picture that come of them."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import create_autospec

import pytest

from hiprune import HiPruneConfig, HiPruneError
from scripts.bench import ablation
from scripts.bench import run as bench_run
from scripts.bench.__main__ import STUDIES, main
from scripts.bench.ablation import read
from scripts.bench.plan import plan
from scripts.benchmarks import BENCHMARKS
from scripts.tables.ablations import TABLES, all_fields, scores_of, sweeps, tables
from scripts.tables.runs import Table
from scripts.tables.summaries import draw_sweeps, render_ablations

DEFAULT = HiPruneConfig(192, object_layer=9)


def config(**fields):
    return replace(DEFAULT, **fields)


SWEPT = sweeps(BENCHMARKS["llava"], tiny=False, object_layer=9)
LLAVA_FIELDS = all_fields("llava", SWEPT, object_layer=9)


@pytest.mark.parametrize("tiny", [True, False])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_every_setting_is_one_run_and_can_be_configured(family, tiny):
    benchmark = BENCHMARKS[family]
    settings = read(benchmark, tiny=tiny, env={"TASKS": "pope"})
    swept = sweeps(benchmark, tiny, settings.object_layer)
    assert settings.config.object_layer == settings.object_layer in swept["object_layer"]
    assert swept["object_layer"] == tuple(sorted(swept["object_layer"]))
    fields = all_fields(family, swept, settings.object_layer)
    configs = [replace(settings.config, **one) for one in fields]
    runs = [run for c in configs for run in plan(replace(settings, config=c))]
    assert len({run.folder for run in runs}) == len(runs)  # none twice
    for run, c in zip(runs, configs, strict=True):
        family_of = benchmark.family
        assert HiPruneConfig.from_env(family_of, run.environment).variant() == c.variant()
        assert HiPruneConfig.from_env(family_of, run.environment).alpha == c.alpha
    if family == "qwen2_5_vl":
        assert not any(c.uses_cls for c in configs)


@pytest.mark.parametrize("name", ["HIPRUNE_ALPHA", "HIPRUNE_BUFFER", "HIPRUNE_OBJECT_LAYER"])
def test_what_the_ablation_sets_itself_is_refused(name):
    with pytest.raises(HiPruneError, match=rf"^{name}='1': expected only HIPRUNE_RETENTION"):
        read(BENCHMARKS["llava"], tiny=False, env={name: "1"})
    with pytest.raises(HiPruneError, match=r"^RETENTIONS='64': expected one budget"):
        read(BENCHMARKS["llava"], tiny=False, env={"RETENTIONS": "64"})


def test_tasks_and_budget_are_the_papers():
    settings = read(BENCHMARKS["llava"], tiny=False, env={})
    assert settings.tasks == ("gqa", "mme", "pope", "vizwiz_vqa_val")
    assert settings.budgets == ("192",)
    assert read(BENCHMARKS["llava"], False, {"HIPRUNE_RETENTION": "64"}).budgets == ("64",)


def finished():
    """Tables of finished runs; every setting has a score of its own."""
    found = []
    for number, fields in enumerate(LLAVA_FIELDS):
        c = config(**fields)
        table = Table("x/llava-v1.5-7b", c.alpha, c.object_layer, None, c.variant())
        table.rows = {"unpruned": {"pope": 80.0}, 192: {"pope": 40.0 + number}}
        found.append(table)
    return found


def test_the_tables_hold_ours_and_the_papers_rows():
    text = render_ablations("llava", "x/llava-v1.5-7b", 192, config, scores_of(finished(), 192))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["all, default", "ours", "40.0", "100.0"] in lines
    assert ["without registers", "ours", "42.0", "105.0"] in lines
    after = lines[lines.index(["without registers", "ours", "42.0", "105.0"]) + 1]
    assert after == ["", "paper", "85.5", "97.9"]
    for table in TABLES:
        assert f"Table {table.number}: {table.about}" in text
        for row in table.rows:
            assert sum(line[:1] == [row.title] for line in lines) >= 1
    other = render_ablations("llava", "x/other", 192, config, scores_of(finished(), 192))
    assert "paper |" not in other


def test_what_has_not_run_is_a_dash():
    found = [t for t in finished() if t.variant.get("buffer") != "square"]
    text = render_ablations("llava", "x/other", 192, config, scores_of(found, 192))
    square = next(line for line in text.splitlines() if line.startswith("| square"))
    assert square.count("–") == 2
    assert "6a" not in [table.number for table in tables("qwen2_5_vl")]


def test_the_sweeps_are_drawn(tmp_path):
    file = tmp_path / "sweeps.png"
    scores = scores_of(finished(), 192)
    assert draw_sweeps(SWEPT, "title", {"pope": 80.0}, config, scores, file)
    assert file.stat().st_size > 5000
    assert not draw_sweeps(SWEPT, "title", None, config, scores, tmp_path / "none.png")


def test_a_run_says_what_differs_from_the_default():
    settings = read(BENCHMARKS["llava"], tiny=True, env={})
    (default,) = plan(settings)
    assert default.label == "N' = 48, hiprune_tiny"
    changed = replace(settings.config, alpha=0.3, object_layer=5, buffer="row")
    (run,) = plan(replace(settings, config=changed))
    assert run.label == "N' = 48, alpha 0.3, layer 5, buffer row, hiprune_tiny"


@pytest.mark.parametrize("family", BENCHMARKS)
def test_the_tiny_ablation_makes_what_it_needs_and_runs_every_setting(
    family, monkeypatch, tmp_path
):
    for name in ("CKPT", "TASKS", "RETENTIONS", "LIMIT", "NUM_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OUTPUT", str(tmp_path))
    run = []
    makers = ("make_checkpoint", "make_tiny_task")
    for name in makers:
        monkeypatch.setattr(bench_run, name, create_autospec(getattr(bench_run, name)))
    monkeypatch.setattr(bench_run, "run_all", lambda runs, *_: run.extend(runs) or {})
    monkeypatch.setattr(bench_run, "end_on_signals", lambda: None)
    monkeypatch.setitem(STUDIES, "ablation", (read, ablation.runs, lambda settings: None))
    assert main(["ablation", "--family", family, "--tiny"]) == 0
    benchmark = BENCHMARKS[family]
    for name in makers:
        getattr(bench_run, name).assert_called_once_with(benchmark.tiny)
    assert run[0].folder.parent.name == "unpruned"
    layers = {one.environment.get("HIPRUNE_OBJECT_LAYER") for one in run[1:]}
    assert layers == {str(layer) for layer in benchmark.tiny.layers}
