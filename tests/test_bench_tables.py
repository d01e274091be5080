"""The table at the end of a bench script: what has finished with the settings of this call."""

import json
import signal

import pytest

from scripts.bench import identity as run_identity
from scripts.bench.__main__ import main
from scripts.bench.identity import with_identity
from scripts.bench.plan import plan
from scripts.bench.settings import read_settings
from scripts.benchmarks import BENCHMARKS

LLAVA = BENCHMARKS["llava"]


@pytest.fixture
def finished(tmp_path, monkeypatch, capsys):
    """A call of bench.py of which every run has finished: what it prints."""
    for name in ("CKPT", "TASKS", "RETENTIONS", "LIMIT", "NUM_PROCESSES", "OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run_identity, "revision", lambda checkpoint: "0123abcd")  # no hub here
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # main() sets a handler

    def call(score, **environment):
        environment |= {"OUTPUT": str(tmp_path), "TASKS": "pope"}
        settings = with_identity(read_settings(LLAVA, False, environment))
        for run in plan(settings):
            if not run.finished:
                budget = run.environment.get("HIPRUNE_RETENTION")
                write_results(run.folder, score, budget and int(budget), settings.config)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert main(["--family", "llava"]) == 0
        for name in environment:
            monkeypatch.delenv(name)
        return [line.replace(" ", "") for line in capsys.readouterr().out.splitlines()]

    return call


def write_results(folder, score, budget, config):
    record = {"pruned": budget is not None, "retention": budget, "images": 2}
    record["visual_tokens_per_image"] = 9.0
    record |= {"alpha": budget and config.alpha, "object_layer": budget and config.object_layer}
    result = {
        "results": {"pope": {"pope_f1_score,none": score}},
        "config": {"limit": None},
        "date": "20260102_030405",
        "hiprune": record | {"checkpoint": LLAVA.checkpoint},
    }
    folder.mkdir(parents=True)
    (folder / "20260102_030405_results.json").write_text(json.dumps(result))


def test_the_table_is_of_the_settings_of_this_call(finished):
    lines = finished(0.25, RETENTIONS="64 unpruned", HIPRUNE_ALPHA="0.5")
    assert "|64|ours|25.0|100.0|1|–|9.0|" in lines
    lines = finished(0.125, RETENTIONS="128", HIPRUNE_ALPHA="0.75")
    assert "|128|ours|12.5|50.0|1|–|9.0|" in lines and "|unpruned|ours|25.0|100.0|1|–|9.0|" in lines
    assert not any(line.startswith("|64|") for line in lines)


def test_the_unpruned_row_is_shown_beside_runs_of_other_settings(finished):
    finished(0.25, HIPRUNE_RETENTION="64", HIPRUNE_ALPHA="0.5")
    assert "|unpruned|ours|50.0|100.0|1|–|9.0|" in finished(0.5, RETENTIONS="unpruned")
