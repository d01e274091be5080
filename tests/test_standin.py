"""The paper's eight tasks as lmms-eval defines them, on stand-in data from a hub of our own.

The scores of the results files and of the tables are held against ones of the test's own: of
answers that are prescribed (tests/standin/data.py counts them by hand) and of a small trained
model's.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers", minversion="5.17", reason="needs the environment .venv-qwen")

from standin.data import SCORES, make_data
from standin.hub import CHAT, serving
from standin.scores import letters_drawn, score

from scripts.tables.__main__ import main as make_tables
from scripts.tables.columns import COLUMNS

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
TASKS = list(SCORES)
BUDGET = 16


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Starts of a bench script: without a login; unpruned, with answers of its own; without a
    login once more, with the data in the cache; pruned, with prescribed answers."""
    folder = tmp_path_factory.mktemp("standin")
    rows = make_data(folder, "llava")
    logs = folder / "logs"
    common = {"OUTPUT": str(logs), "TASKS": " ".join(TASKS), "RETENTIONS": "unpruned"}
    common["CKPT"] = str(ROOT / "assets" / "llava-1.5-tiny")
    plan = {
        "script": "bench_qwen.sh",  # with another family's checkpoint
        "arguments": [],
        "said": {task: [row["said"] for row in of_task] for task, of_task in rows.items()},
        "starts": [
            common | {"login": False, "TASKS": "pope gqa"},
            common,
            common | {"login": False, "OUTPUT": str(folder / "cached"), "TASKS": "pope"},
            common | {"prescribed": True, "RETENTIONS": str(BUDGET)},
        ],
    }
    with serving(folder / "hub") as url:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HIPRUNE_"))}
        for name in ("HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "API_TYPE"):
            env.pop(name, None)
        env |= {
            "HF_HOME": str(folder / "home"),
            "HF_ENDPOINT": url,
            "OPENAI_API_URL": url + CHAT,
            "PYTHONPATH": f"{TESTS}:{ROOT}",
            "CUDA_VISIBLE_DEVICES": "",
        }
        # To look for garbage in what is imported takes seconds.
        start = "import gc, runpy; gc.disable(); "
        start += "runpy.run_module('standin.evaluate', run_name='__main__')"
        command = [sys.executable, "-W", "ignore", "-c", start]
        done = subprocess.run(
            command, input=json.dumps(plan), env=env, cwd=folder, capture_output=True, text=True
        )
    starts = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert done.returncode == 0 and len(starts) == 4, done.stdout + done.stderr
    names = ("no_login", "own", "cached", "prescribed")
    return SimpleNamespace(
        rows=rows, logs=logs, folder=folder, **dict(zip(names, starts, strict=True))
    )


def results(runs, budget, task):
    """lmms-eval's results file of a run, and the answers of its samples file."""
    (folder,) = runs.logs.glob(f"*/{budget}*/{task}")
    (file,) = folder.rglob("2*_results.json")  # MMBench's own is among its submissions
    (samples,) = folder.rglob("*_samples_*.jsonl")
    lines = map(json.loads, samples.read_text(encoding="utf-8").splitlines())
    answers = {line["doc_id"]: line["filtered_resps"] for line in lines}
    return json.loads(file.read_text()), [answers[i] for i in sorted(answers)]


def metric(result, task):
    values = {key.partition(",")[0]: value for key, value in result["results"][task].items()}
    return COLUMNS[task].scale * sum(values[name] for name in COLUMNS[task].metrics)


@pytest.mark.parametrize("task", TASKS)
def test_prescribed_answers_score_as_counted_by_hand(runs, task):
    assert runs.prescribed[0] == 0, runs.prescribed[1]
    result, answers = results(runs, "retention", task)
    assert answers == [row["said"].strip() for row in runs.rows[task]]
    assert metric(result, task) == pytest.approx(SCORES[task])
    assert score(task, runs.rows[task], answers) == pytest.approx(SCORES[task])


@pytest.mark.parametrize("task", TASKS)
def test_a_models_own_answers_score_as_counted_from_its_samples(runs, task):
    assert runs.own[0] == 0, runs.own[1]
    result, answers = results(runs, "unpruned", task)
    assert len(answers) == len(runs.rows[task])
    assert metric(result, task) == pytest.approx(score(task, runs.rows[task], answers))


def test_the_small_model_knows_what_it_sees(runs):
    """Of drawn scenes it knows nearly all: the pictures and questions reach it as they should."""
    for task, least in {"gqa": 80, "mme": 600, "pope": 80, "vizwiz_vqa_val": 30}.items():
        assert metric(results(runs, "unpruned", task)[0], task) >= least


@pytest.mark.parametrize(("budget", "tokens"), [("unpruned", 144), ("retention", BUDGET)])
def test_what_ran_is_stated(runs, budget, tokens):
    for task in TASKS:
        record = results(runs, budget, task)[0]["hiprune"]
        assert record["images"] == len(runs.rows[task])
        assert record["visual_tokens_per_image"] == tokens


def test_the_tables_have_these_scores(runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_tables.py", str(runs.logs), "--format", "csv"])
    make_tables()
    cells = {
        (line["row"], line["column"]): float(line["ours"])
        for line in csv.DictReader(io.StringIO(capsys.readouterr().out))
        if line["ours"]
    }
    shares = []
    for task in TASKS:
        title = COLUMNS[task].title
        own = score(task, runs.rows[task], results(runs, "unpruned", task)[1])
        assert cells["unpruned", title] == pytest.approx(own)
        assert cells[str(BUDGET), title] == pytest.approx(SCORES[task])
        shares += [100 * SCORES[task] / own] if own else []
    assert cells[str(BUDGET), "avg %"] == pytest.approx(sum(shares) / len(shares))
    assert cells[str(BUDGET), "columns"] == len(shares)


def test_the_table_at_the_end_of_a_start(runs):
    shown = [line for line in runs.prescribed[1].splitlines() if line.startswith(f"| {BUDGET} ")]
    (row,) = shown
    for task in TASKS:
        assert f" {SCORES[task]:.1f} " in row


def test_letters_that_are_drawn_are_told_before_and_after(runs):
    """Nobody reads some answers: lmms-eval asks a GPT model, which knows no key, and draws."""
    for status_and_output, budget, name in (
        (runs.own, "unpruned", "unpruned"),
        (runs.prescribed, "retention", str(BUDGET)),
    ):
        output = status_and_output[1]
        assert output.index("OPENAI_API_KEY is not set") < output.index("[1/8]")
        for task in ("mmbench_en_dev", "mmbench_cn_dev"):
            result, answers = results(runs, budget, task)
            drawn = letters_drawn(runs.rows[task], answers)
            assert result["hiprune"].get("letters_drawn", 0) == drawn
            if drawn:
                assert re.search(
                    rf"Partly chance: .*`{task}` at {name} \({drawn} answers\)", output
                )
    result, answers = results(runs, "retention", "mmbench_en_dev")
    assert result["hiprune"]["letters_drawn"] == 2
    assert "letters_drawn" not in results(runs, "retention", "mmbench_cn_dev")[0]["hiprune"]


def test_without_a_login_nothing_but_what_is_cached_runs(runs):
    status, output = runs.no_login
    assert status == 1
    assert "no login to the model and data hub (`hf auth login`, or HF_TOKEN set to one)" in output
    assert "Left out until then: pope, gqa." in output
    assert "[1/2] unpruned, pope: left out: data set lmms-lab-encoder/POPE is not on this" in output
    status, output = runs.cached
    assert status == 0, output
    assert "no login" not in output and "[1/1] unpruned, pope: done" in output
    assert f"{score('pope', runs.rows['pope'], results(runs, 'unpruned', 'pope')[1]):.1f}" in output
