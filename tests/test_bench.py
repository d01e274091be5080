"""The bench scripts as a user starts them: real evaluations of the tiny checkpoints by lmms-eval.

Each launch takes seconds, so that one story is told by few of them: a command is interrupted,
started again until its good task is done and its bad one has failed, and once more. What is not
about the processes runs in this one.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("llava", reason="the llava package lives in .venv-llava alone")

from bench_in_process import VARIABLES, bench_here
from forking_python import serving, serving_here, write_python

ROOT = Path(__file__).resolve().parents[1]
FEW_TASKS = str(ROOT / "tests" / "few_tasks")
GOOD, BAD = "hiprune_tiny", "pope"  # whose data --tiny, off the hub, does not get
LIMIT = 5  # odd: two processes cannot share it out evenly; a question of each kind
SETTINGS = {"HIPRUNE_RETENTION": "17", "HIPRUNE_ALPHA": "0.25", "HIPRUNE_OBJECT_LAYER": "5"}
METRICS = ("existence_accuracy", "existence_f1", "colour", "shape", "count", "position")


def start(folder, script="bench_llava.sh", **variables):
    """The script in a session of its own, as from a terminal in ``folder``."""
    ours = {name for name in os.environ if name.startswith("HIPRUNE_") or name in VARIABLES}
    env = {name: value for name, value in os.environ.items() if name not in ours}
    # Without a GPU everywhere; and one thread, so that answers do not hang on the order of sums.
    env |= {"VENV": sys.prefix, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": FEW_TASKS, "OUTPUT": "the logs", "LIMIT": str(LIMIT), **variables}
    command = ["bash", str(ROOT / script), "--tiny"]
    # What is ignored here would be ignored there, and the shell of a background job ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command, env=env, cwd=folder, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)


def bench(folder, **variables):
    """(exit status, output)"""
    process = start(folder, **variables)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def bench_by_forks(folder, **variables):
    """The same, of forks of this process."""
    with tempfile.TemporaryDirectory() as venv, serving_here() as place:
        write_python(Path(venv) / "bin" / "python", place)
        (Path(venv) / "hiprune-setup-complete").touch()
        return bench(folder, VENV=venv, **variables)


def bench_in_this_process(folder, script="bench_llava.sh", **variables):
    variables = {"OUTPUT": str(folder / "the logs"), "LIMIT": str(LIMIT), **variables}
    return bench_here(script, "--tiny", **variables)


def results(folder, task=GOOD, setting="*"):
    (path,) = folder.glob(f"the logs/*/{setting}/{task}/**/*_results.json")
    return json.loads(path.read_text())


def samples(folder, task=GOOD, setting="*"):
    (path,) = folder.glob(f"the logs/*/{setting}/{task}/**/*_samples_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(folder):
    return {
        line["doc_id"]: (line["filtered_resps"], *(line[name] for name in METRICS))
        for line in samples(folder)
    }


def share_of_right_answers(folder, setting):
    lines = samples(folder, setting=setting)
    return sum(line["filtered_resps"] == line["target"] for line in lines) / len(lines)


def states(folder):
    return sorted(path.name for path in folder.glob("the logs/*/*/*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def interrupted(folder):
    """What is left after Ctrl-C in the middle of the good task."""
    process = start(folder, TASKS=f"{GOOD} {BAD}", **SETTINGS)
    deadline = time.monotonic() + 200
    while not any(
        "Model Responding" in log.read_text(errors="replace")
        for log in folder.glob(f"the logs/*/*/{GOOD}.running/log.txt")
    ):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    start_of_end = time.monotonic()
    output, _ = process.communicate(timeout=120)
    seconds = time.monotonic() - start_of_end
    psutil.wait_procs(children, timeout=2)
    alive = [one for one in children if one.is_running() and one.status() != "zombie"]
    return process.returncode, output, seconds, children, alive, states(folder)


@pytest.fixture(scope="module")
def finished(interrupted, folder):
    """The same command once more, through to its end."""
    done = bench_in_this_process(folder, TASKS=f"{GOOD} {BAD}", **SETTINGS)
    return *done, states(folder)


@pytest.fixture(scope="module")
def again(finished, folder):
    before = results(folder)
    log = next(folder.glob(f"the logs/*/*/{BAD}.failed/log.txt"))
    marks = before["date"], log.stat().st_mtime_ns
    status, output = bench_in_this_process(folder, TASKS=f"{GOOD} {BAD}", **SETTINGS)
    return status, output, marks, (results(folder)["date"], log.stat().st_mtime_ns)


def test_an_interrupted_run(interrupted):
    status, output, seconds, children, alive, folders = interrupted
    assert status == 130
    assert f"[1/2] N' = 17, alpha 0.25, layer 5, {GOOD}: running" in output
    assert "interrupted; the same command goes on" in output
    assert "Traceback" not in output
    assert seconds < 15
    assert len(children) >= 2  # the guard and the evaluation
    assert alive == []
    assert folders == [f"{GOOD}.running"]


def test_a_failed_task_does_not_stop_the_others(finished):
    status, output, folders = finished
    assert status == 1
    assert f"[1/2] N' = 17, alpha 0.25, layer 5, {GOOD}: done" in output
    assert f"[2/2] N' = 17, alpha 0.25, layer 5, {BAD}: FAILED" in output
    assert folders == [GOOD, f"{BAD}.failed"]
    # Said once when it happens, and once more where the reader will look: at the end.
    last = output.splitlines()[-1]
    assert last.startswith(f"FAILED N' = 17, alpha 0.25, layer 5, {BAD}: ")
    assert "POPE" in last  # of the data set that was not reached


def test_the_table_at_the_end(finished, folder):
    _, output, _ = finished
    (row,) = (line for line in output.splitlines() if line.startswith("| 17"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    found = results(folder)["results"][GOOD]
    scores = {name: 100 * found[f"{name},none"] for name in METRICS}
    mean = sum(score for name, score in scores.items() if name != "existence_f1") / 5
    if scores["existence_f1"] == 0 and scores["existence_accuracy"] == 100:
        del scores["existence_f1"]  # of no "yes" at all: no F1
    cells_of_scores = [f"{score:.1f}" for score in (*scores.values(), mean)]
    assert cells == ["17", "ours", *cells_of_scores, "–", "–", "17.0"]
    assert f"LIMIT = {LIMIT} samples a task" in output
    (kept,) = folder.glob("the logs/*/table.md")
    assert kept.read_text().strip() in output


def test_the_record_in_the_results(finished, folder):
    record = results(folder)["hiprune"]
    found = {name: record[name] for name in ("pruned", "retention", "alpha", "object_layer")}
    assert found == {"pruned": True, "retention": 17, "alpha": 0.25, "object_layer": 5}
    assert record["family"] == "llava"
    assert record["images"] == LIMIT
    assert record["visual_tokens_per_image"] == 17.0
    for package in ("hiprune", "torch", "transformers", "llava-torch", "lmms_eval"):
        assert record["versions"][package]


def test_started_again_it_tries_what_failed(again):
    status, output, (good, bad), (good_now, bad_now) = again
    assert status == 1
    assert f"[1/2] N' = 17, alpha 0.25, layer 5, {GOOD}: finished before" in output
    assert f"[2/2] N' = 17, alpha 0.25, layer 5, {BAD}: FAILED" in output
    assert good_now == good
    assert bad_now > bad
    assert "| 17" in output


@pytest.fixture
def forking_venv(tmp_path):
    """All the Pythons of a bench script, forks of one that has the slow imports done."""
    modules = ("torch.distributed.run", "lmms_eval.__main__", "llava.model.builder")
    with serving(*modules, "hiprune.lmms.llava") as place:
        write_python(tmp_path / "venv" / "bin" / "python", place)
        (tmp_path / "venv" / "hiprune-setup-complete").touch()
        yield str(tmp_path / "venv")


def test_two_processes_give_the_scores_of_one(finished, folder, forking_venv, tmp_path):
    status, output = bench(tmp_path, VENV=forking_venv, NUM_PROCESSES="2", **SETTINGS)
    assert status == 0, output
    (log,) = tmp_path.glob("the logs/*/*/*/log.txt")
    for rank in (0, 1):
        assert f"on rank {rank}" in log.read_text(errors="replace")
    assert sorted(answers(tmp_path)) == list(range(LIMIT))
    assert answers(tmp_path) == answers(folder)
    one, two = results(folder), results(tmp_path)
    assert two["results"] == one["results"]
    # One process gets a sample more than the other, which repeats one: not to be counted.
    assert two["hiprune"]["images"] == one["hiprune"]["images"]
    assert two["hiprune"]["visual_tokens_per_image"] == 17.0


def test_a_trained_model_answers(tmp_path):
    status, output = bench_in_this_process(tmp_path, RETENTIONS="unpruned", LIMIT="10")
    assert status == 0, output
    assert share_of_right_answers(tmp_path, "unpruned*") >= 0.8
    record = results(tmp_path)["hiprune"]
    assert (record["pruned"], record["visual_tokens_per_image"]) == (False, 144.0)


def test_llava_next(tmp_path):
    settings = {"RETENTIONS": "unpruned 163", "LIMIT": "10"}
    status, output = bench_in_this_process(tmp_path, "bench_llava_next.sh", **settings)
    assert status == 0, output
    assert share_of_right_answers(tmp_path, "unpruned*") >= 0.8
    record = results(tmp_path, setting="retention-163_*")["hiprune"]
    assert (record["family"], record["retention"]) == ("llava_next", 163)
    # int(163 / views) a view, and there are 5 views.
    assert record["visual_tokens_per_image"] == 160
    assert "| 163 " in output


@pytest.mark.parametrize(
    ("start", "name", "value", "expected"),
    [
        (bench_by_forks, "HIPRUNE_RETENTION", "577", "1 to 576"),
        (bench_in_this_process, "LIMIT", "none", "an integer of at least 1"),
    ],
    ids=["HIPRUNE_RETENTION", "LIMIT"],
)
def test_a_bad_value_ends_it_at_once(tmp_path, start, name, value, expected):
    status, output = start(tmp_path, **{name: value})
    assert status == 2
    assert output.startswith(f"{name}={value!r}: expected ") and expected in output
    assert output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
