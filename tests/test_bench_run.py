"""bench.process on small commands instead of evaluations: states of the folder, reasons, ends."""

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from scripts.bench import process as bench_process
from scripts.bench import run as bench_run
from scripts.bench.process import Run

RECORD = {"checkpoint": "x", "pruned": True, "retention": 9, "alpha": 0.1, "object_layer": 9}
RECORD |= {"images": 2, "visual_tokens_per_image": 9.0}
RESULTS = {"results": {"TASK": {}}, "date": "2026", "config": {"limit": None}, "hiprune": RECORD}
WRITE_RESULTS = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / "model").mkdir()
text = os.environ.get("RESULTS", "{results}").replace("TASK", folder.name.partition(".")[0])
(folder / "model" / "20260102_030405_results.json").write_text(text)
""".replace("{results}", json.dumps(RESULTS).replace('"', '\\"'))


@pytest.fixture
def make(tmp_path):
    def make(code, name="task", **environment):
        def command(folder):
            return [sys.executable, "-c", code, str(folder)]

        folder = tmp_path / "logs" / "setting" / name
        return Run(f"N' = 64, {name}", command, environment, folder)

    return make


def names(run):
    return sorted(path.name for path in run.folder.parent.iterdir())


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


STARTER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from scripts.bench.run import run_all
from scripts.bench.process import Run
def command(folder):
    return [sys.executable, "-c", sys.argv[2], str(folder)]
run_all([Run("x", command, {}, Path(sys.argv[3]))])
"""


def test_what_kills_the_start_ends_its_evaluation(make, tmp_path):
    """SIGKILL, which no handler sees; the next start takes the lock of the one that is gone."""
    run = make(WRITE_RESULTS)
    code = "import subprocess, sys, time; print('x', flush=True)\n" + (
        "print('child', subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(90)']).pid"
        ", flush=True); time.sleep(90)"
    )
    root = str(Path(bench_process.__file__).parents[2])
    start = psutil.Popen([sys.executable, "-c", STARTER, root, code, str(run.folder)])
    log = run.folder.with_name("task.running") / "log.txt"
    while not (log.is_file() and "child" in log.read_text()):
        time.sleep(0.05)
    processes = start.children(recursive=True)
    assert len(processes) == 3  # the guard, the evaluation, and what it has started
    start.kill()
    start.wait()
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    assert run.lock.exists()
    assert bench_run.run_all([run]) == {}
    assert names(run) == ["task"]


WORKER = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1], str(os.getpid())).touch()"


@pytest.mark.parametrize("who", ["agent", "start"])
def test_what_kills_torchrun_ends_its_processes(make, tmp_path, who):
    """They are sessions of their own, out of reach of a signal to the evaluation's group."""
    worker, here = tmp_path / "worker.py", tmp_path / "pids"
    worker.write_text(WORKER + "; time.sleep(90)")
    here.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *torchrun, str(worker), str(here)]
    code = f"import os; os.execv({sys.executable!r}, {command!r})"
    run = make(code)
    reasons = []
    if who == "agent":
        thread = threading.Thread(target=lambda: reasons.append(run.execute()))
        thread.start()
    else:
        root = str(Path(bench_process.__file__).parents[2])
        start = psutil.Popen([sys.executable, "-c", STARTER, root, code, str(run.folder)])
    while len(list(here.iterdir())) < 2:
        time.sleep(0.05)
    workers = [psutil.Process(int(path.name)) for path in here.iterdir()]
    assert len({os.getsid(one.pid) for one in [psutil.Process(), *workers]}) == 3
    if who == "agent":
        workers[0].parent().kill()
        thread.join(30)
        assert reasons[0].startswith("killed by SIGKILL, most likely by the system for want of")
    else:
        start.kill()
        start.wait()
    _, alive = psutil.wait_procs(workers, timeout=15)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL, most likely by the system for want of mem"),
        ("os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("print('Signal 9 (SIGKILL) received by PID 7'); sys.exit(1)", "one of the processes was"),
    ],
)
def test_a_signal_is_told_as_the_reason(make, code, reason):
    told = make("import os, sys; print('RuntimeWarning: x', flush=True); " + code).execute()
    assert told.startswith(reason)


def test_what_another_launcher_left_does_not_reach_a_run(make, monkeypatch):
    foreign = ("ACCELERATE_USE_DEEPSPEED", "FSDP_VERSION", "MASTER_ADDR", "WORLD_SIZE", "RANK")
    foreign += ("LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "TORCHELASTIC_RUN_ID")
    for name in foreign:
        monkeypatch.setenv(name, "1")
    run = make("import os; print(*os.environ); raise SystemExit(1)", ACCELERATE_USE_CPU="1")
    run.execute()
    seen = (run.failed_folder / "log.txt").read_text()
    assert "ACCELERATE_USE_CPU" in seen  # ours
    assert [name for name in foreign if name in seen.split()] == []


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


TOLD = "2026-01-02 | ERROR | Error during evaluation: {}. Please set `--verbosity=DEBUG` to see."
TRACE = "Traceback (most recent call last):\n  File launch.py\n    raise subprocess.Called\n"
LAUNCHER = TRACE + "subprocess.CalledProcessError: Command '['python', '-m', 'lmms_eval']' "
STATUS = LAUNCHER + "returned non-zero exit status 1."
ELASTIC = "torch.distributed.elastic.multiprocessing.errors"
RANKS = f"{TRACE}{ELASTIC}.ChildFailedError: \n=====\nlmms_eval FAILED"
BROKEN = "task x, sample 4: ValueError: broken"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (["Traceback", "ValueError: first", "Traceback", "a.b.SomeError: last", "0%|  |"], "last"),
        (["RuntimeError: earlier", TOLD.format(BROKEN)], BROKEN),
        (["", "Killed", ""], "exit status 1: Killed"),
        ([], "exit status 1"),
        (["[rank1]: Traceback", "[rank1]: RuntimeError: out of memory"], "out of memory"),
        # What a package raises around the cause of it.
        (
            [
                "ConnectionError: Couldn't reach 'a/b' on the Hub",
                "tenacity.RetryError: RetryError[<Future at 0x7 state=finished raised Connection>]",
                TOLD.format("RetryError[<Future at 0x7 state=finished raised ConnectionError>]"),
            ],
            "Couldn't reach 'a/b' on the Hub",
        ),
        # What the launchers say after the evaluation has said why.
        (["OSError: disk full", STATUS], "disk full"),
        ([BROKEN, RANKS], BROKEN),
        (["[rank0]: OSError: disk full", RANKS], "disk full"),
        # What the other processes say when one has ended.
        (
            [
                "[rank1]: OSError: disk full",
                "RuntimeError: [/x/gloo/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2",
                TOLD.format("[/x/gloo/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2"),
            ],
            "disk full",
        ),
        # Nothing else to tell: out of memory looks like this.
        ([LAUNCHER + "died with <Signals.SIGKILL: 9>."], "SIGKILL"),
    ],
)  # fmt: skip
def test_the_reason_is_what_the_log_says(make, log, reason):
    told = make(f"import sys; print({chr(10).join(log)!r}); sys.exit(1)").execute()
    assert reason in told
    assert "\n" not in told
    assert len(told) <= 500


def test_a_log_that_is_no_text(make):
    code = r"import sys; sys.stdout.buffer.write(b'\xff\xfe\nValueError: \xff'); sys.exit(1)"
    assert make(code).execute().startswith("ValueError: ")


HOLDS_ON = """
import signal, subprocess, sys, time
sleeper = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("child", subprocess.Popen([sys.executable, "-c", sleeper]).pid, flush=True)
"""


@pytest.mark.parametrize("leader", ["stays", "has ended"])
def test_an_interruption_leaves_no_process(make, monkeypatch, leader):
    """Not even those that take no notice of SIGTERM, or whose launcher is gone."""
    monkeypatch.setattr(bench_process, "GRACE_SECONDS", 0.5)
    run = make(HOLDS_ON + ("time.sleep(60)" if leader == "stays" else ""))
    log = run.folder.with_name("task.running") / "log.txt"
    child = []

    def interrupt():
        while not (log.is_file() and log.read_text().endswith("\n")):
            time.sleep(0.02)
        child.append(psutil.Process(int(log.read_text().split()[-1])))
        time.sleep(0.5)  # for the leader to end, and the sleeper to be deaf
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt, daemon=True)
    try:
        thread.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run.execute()
        assert time.monotonic() - start < 20
        # One that waits for its parent to take notice of its end is none that runs.
        psutil.wait_procs(child, timeout=1)
        left = [one for one in child if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    finally:
        signal.signal(signal.SIGINT, before)
        for process in child:
            if process.is_running():
                os.kill(process.pid, signal.SIGKILL)
    assert left == []
    assert not run.finished
    assert names(run) == ["task.running"]
