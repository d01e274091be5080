"""scripts.bench.process on small commands: how they end, what is told of it, that none is left."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from small_runs import WRITE_RESULTS, make, names

from scripts.bench import process as bench_process
from scripts.bench import run as bench_run

__all__ = ["make"]  # a fixture


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
