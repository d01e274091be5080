"""scripts.bench.run on small commands: states of the folder, what is run again, who is at it."""

import json
import os
import re
import threading
import time

import pytest
from small_runs import RECORD, RESULTS, WRITE_RESULTS, make, names

from scripts.bench import run as bench_run

__all__ = ["make"]  # a fixture


def test_a_finished_run(make):
    seen = "print(sorted(os.listdir(folder.parent)), os.environ['SETTING'])"
    run = make(WRITE_RESULTS + seen + "\nprint('to stderr', file=sys.stderr)", SETTING="17")
    assert not run.finished
    assert run.execute() is None
    assert run.finished
    assert names(run) == ["task"]
    # While it ran its folder had another name.
    assert (run.folder / "log.txt").read_text() == "['task.running'] 17\nto stderr\n"
    assert (run.folder / "model" / "20260102_030405_results.json").is_file()


def test_status_zero_without_results_is_a_failure(make):
    """lmms-eval logs an exception and ends with status 0."""
    run = make("print('Something went wrong'); print()")
    assert run.execute() == "exit status 0: Something went wrong"
    assert not run.finished
    assert names(run) == ["task.failed"]


def test_results_with_a_bad_status_are_a_failure(make):
    run = make(WRITE_RESULTS + "sys.exit(3)")
    assert run.execute() == "exit status 3"
    assert names(run) == ["task.failed"]


BAR = "Model Responding:  50%|#####     | {}/2 [00:01<00:01,  1.00it/s]"


@pytest.mark.parametrize(
    ("log", "answered"),
    [
        ("ModuleNotFoundError: No module named 'filelock._api'", False),
        (BAR.format(0) + "\rRuntimeError: out of memory", False),
        (BAR.format(0) + "\r" + BAR.format(1) + "\rRuntimeError: flawed", True),
    ],
)
def test_whether_a_sample_was_answered_before_the_failure(make, log, answered):
    run = make(f"print({log!r}); raise SystemExit(1)")
    assert run.execute() is not None
    assert run.answered is answered


def test_where_nothing_can_run_all_stop_with_the_one_reason(make, capsys):
    broken = "raise ImportError('no filelock._api')"
    runs = [make(broken, name) for name in ("one", "two", "three")]
    failures = bench_run.run_all(runs, diagnose=lambda run, reason: f"as found: {reason}")
    assert failures == {"every run": "as found: ImportError: no filelock._api"}
    told = capsys.readouterr().out
    assert "[1/3]" in told and "[2/3]" not in told
    assert told.count("as found: ImportError: no filelock._api") == 1
    assert not runs[1].failed_folder.exists()


def test_a_fault_of_one_run_is_diagnosed_once_and_stops_nothing(make):
    asked = []
    answered = f"print({BAR.format(1)!r}); raise ValueError('late')"
    runs = [make(answered, "late")] + [make("raise ValueError('early')", n) for n in ("b", "c")]
    failures = bench_run.run_all(runs, diagnose=lambda run, _: asked.append(run.task))
    assert list(failures.values()) == ["ValueError: late"] + 2 * ["ValueError: early"]
    assert asked == []  # a run has answered: the environment is not what is broken
    failures = bench_run.run_all(runs[1:], diagnose=lambda run, _: asked.append(run.task))
    assert len(failures) == 2 and asked == ["b"]


def test_a_task_that_is_barred_is_left_out(make, capsys):
    good, barred = make(WRITE_RESULTS, "pope"), make(WRITE_RESULTS, "mme")
    failures = bench_run.run_all([barred, good], {"mme": "its data are not here"})
    assert failures == {"N' = 64, mme": "its data are not here"}
    assert good.finished and not barred.finished
    assert "[1/2] N' = 64, mme: left out: its data are not here" in capsys.readouterr().out


def test_resume_runs_what_has_not_finished(make, tmp_path, capsys):
    """The failed one is tried again, from an empty folder; so is one that was cut off."""
    count = f"open({str(tmp_path / 'calls')!r}, 'a').write(folder.name + ' ');"
    head = "import pathlib, sys; folder = pathlib.Path(sys.argv[1]);" + count
    good = make(head + WRITE_RESULTS, "good")
    cut = make(head + WRITE_RESULTS, "cut")
    flaw = tmp_path / "flaw"
    flaw.touch()
    check = f"assert not pathlib.Path({str(flaw)!r}).exists(), 'flawed';"
    bad = make(head + "(folder / 'rest').touch();" + check + WRITE_RESULTS, "bad")

    assert bench_run.run_all([good, bad]) == {"N' = 64, bad": "AssertionError: flawed"}
    told = capsys.readouterr().out
    assert "[1/2] N' = 64, good: done" in told
    assert "[2/2] N' = 64, bad: FAILED" in told
    assert str(bad.failed_folder / "log.txt") in told

    (cut.folder.parent / "cut.running" / "model").mkdir(parents=True)
    assert set(bench_run.run_all([good, bad, cut])) == {"N' = 64, bad"}
    assert names(good) == ["bad.failed", "cut", "good"]
    flaw.unlink()
    assert bench_run.run_all([good, bad, cut]) == {}
    assert names(good) == ["bad", "cut", "good"]
    told = capsys.readouterr().out
    assert "[1/3] N' = 64, good: finished before" in told
    calls = (tmp_path / "calls").read_text().split()
    assert calls == ["good.running", "bad.running", "bad.running", "cut.running", "bad.running"]


def spoilt(**changes):
    return json.dumps(RESULTS | changes).encode()


BAD = {
    "empty": (b"", "empty"),
    "truncated": (spoilt()[:40], "not whole JSON"),
    "no UTF-8": (b"\xff\xfe" + spoilt(), "no UTF-8 text"),
    "no object": (b"[]", "no 'results' in it"),
    "another's run": (json.dumps({**RESULTS, "hiprune": None}).encode(), "no 'hiprune.checkpoint'"),
    "no limit": (spoilt(config={}), "no 'config.limit'"),
    "a number as text": (
        spoilt(hiprune=RECORD | {"alpha": "0.1"}),
        "hiprune.alpha='0.1': expected a number or null",
    ),
    "of another task": (spoilt(results={"other": {}}), "results of task are missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_results_are_run_again(make, capsys, name):
    text, reason = BAD[name]
    run = make(WRITE_RESULTS)
    assert run.execute() is None
    (file,) = run.folder.rglob("*_results.json")
    file.write_bytes(text)
    assert not run.finished
    assert bench_run.run_all([run]) == {}
    assert run.finished and names(run) == ["task", "task.1.old"]
    told = capsys.readouterr().out
    assert f"not usable: {file}: {reason}" in told
    assert f"set aside as {run.folder}.1.old" in told


def test_a_run_that_writes_bad_results_has_failed(make):
    run = make(WRITE_RESULTS, RESULTS="{")
    reason = run.execute()
    assert reason.startswith(str(run.failed_folder / "model")) and "not whole JSON" in reason


def test_a_tasks_own_results_file_is_not_the_runs(make):
    """As MMBench leaves one beside lmms-eval's."""
    own = "(folder / 'submissions').mkdir()\n"
    own += "(folder / 'submissions' / 'mmbench_en_dev_results.json').write_text('{}')\n"
    run = make(WRITE_RESULTS + own)
    assert run.execute() is None
    assert run.finished


def test_a_run_that_another_start_is_at(make, tmp_path, capsys):
    """The second start says who, goes on with the rest, and takes the result at the end."""
    flag = tmp_path / "go on"
    wait = f"import time\nwhile not os.path.exists({str(flag)!r}): time.sleep(0.02)"
    count = f"open({str(tmp_path / 'calls')!r}, 'a').write(folder.name + ' ')"
    head = "import os, pathlib, sys; folder = pathlib.Path(sys.argv[1]); " + count + "\n"
    free = f"open({str(flag)!r}, 'w')\n"
    slow, other = make(head + wait + WRITE_RESULTS, "slow"), make(head + free + WRITE_RESULTS, "b")
    first = threading.Thread(target=bench_run.run_all, args=([slow],))
    first.start()
    while not slow.lock.exists() or "pid" not in slow.lock.read_text():
        time.sleep(0.02)
    assert bench_run.run_all([slow, other]) == {}
    first.join()
    told = [line for line in capsys.readouterr().out.splitlines() if "/2]" in line]
    who = rf"process {os.getpid()} on \S+, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
    expected = [
        rf"\[1/2\] N' = 64, slow: {who}, is at it; the others first",
        r"\[2/2\] N' = 64, b: running",
        r"\[2/2\] N' = 64, b: done in \d+ s",
        r"\[1/2\] N' = 64, slow: (waiting for .*|finished by another start, kept in .*)",
    ]
    for line, pattern in zip(told, expected, strict=False):
        assert re.fullmatch(pattern, line)
    assert "finished by another start" in told[-1]
    assert sorted((tmp_path / "calls").read_text().split()) == ["b.running", "slow.running"]
    assert names(slow) == ["b", "slow"]  # no lock is left


def test_answers_given_before_a_failure_stay_until_the_run_has_finished(make, tmp_path):
    good = tmp_path / "good"
    code = "import os, pathlib, sys; kept = pathlib.Path(os.environ['HIPRUNE_ANSWERS'])\n"
    code += "kept.mkdir(exist_ok=True); file = kept / 'rank-0.jsonl'; file.open('a').write('x')\n"
    code += "print(file.read_text()); pathlib.Path(sys.argv[1], 'rest').mkdir()\n"
    code += f"if not os.path.exists({str(good)!r}): sys.exit(1)\n"
    run = make(code + WRITE_RESULTS)
    assert run.execute() is not None
    assert (run.failed_folder / "answers" / "rank-0.jsonl").read_text() == "x"
    # Cut off: as it is left by what kills it.
    run.failed_folder.rename(run.folder.with_name("task.running"))
    assert run.execute() is not None
    good.touch()
    assert run.execute() is None
    assert (run.folder / "log.txt").read_text() == "xxx\n"
    assert names(run) == ["task"] and not (run.folder / "answers").exists()
