"""One evaluation in a process of its own: progress on the terminal, the rest in a log."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scripts import guard
from scripts.guard import GRACE_SECONDS
from scripts.tables.results import fault_of, results_files

ANSWERS = "answers"  # in a run's folder until it has finished: hiprune/lmms/answers.py
GUARD = Path(guard.__file__)
PROGRESS = b"Model Responding"  # what lmms-eval's models call their progress bar
ANSWERED = PROGRESS + rb":[^\r\n]*?\b[1-9]\d*/\d+ \["
# What is raised around a cause and tells less than it.
WRAPPERS = (
    r"(?:\w+\.)*(?:RetryError|ChildFailedError|CalledProcessError: .*returned non-zero exit status"
    # What the other processes find when one has ended.
    r"|DistBackendError)|(?:RuntimeError: )?\[\S*/gloo/\S*\]"
)
# How torchrun tells that a signal ended one of its processes.
SIGNALLED = r"Signal \d+ \((SIG\w+)\) received by PID"
OUT_OF_MEMORY = ", most likely by the system for want of memory (the machine's, not the GPU's)"
# What another launcher, or a shell started by one, leaves in the environment. Read by accelerate
# and torch, it makes another run of ours: of other processes, precision or master.
FOREIGN = re.compile(
    r"(?:ACCELERATE|DEEPSPEED|FSDP|MEGATRON_LM|OMPI|PMI|PMIX|MV2|TORCHELASTIC)_.*"
    r"|(?:(?:LOCAL|GROUP|ROLE)_)?(?:RANK|WORLD_SIZE)|MASTER_(?:ADDR|PORT)|MPI_LOCAL.*"
)


@dataclass(frozen=True)
class Run:
    """One (budget, task): its command, the variables it sets, and the folder of its results.

    The folder exists only once the run has finished; until then its name ends in ".running", and
    after a failure in ".failed"; the next start takes the answers that lie in it. While a start is
    at it, it holds the lock beside it. One whose results cannot be used is no finished one: run
    again, its folder is set aside (".1.old").
    """

    label: str
    command: Callable[[Path], list[str]]  # folder to write to -> command line
    environment: dict[str, str]
    folder: Path

    @property
    def finished(self) -> bool:
        return self.folder.is_dir() and self.fault is None

    @property
    def fault(self) -> str | None:
        """Why the results in the folder cannot be used; None where they can."""
        return fault_of(self.folder, self.task)

    @property
    def lock(self) -> Path:
        return self.folder.with_name(self.folder.name + ".lock")

    @property
    def failed_folder(self) -> Path:
        return self.folder.with_name(self.folder.name + ".failed")

    @property
    def task(self) -> str:
        return self.folder.name

    @property
    def answered(self) -> bool:
        """Did the run that failed answer a sample before?"""
        log = self.failed_folder / "log.txt"
        return log.is_file() and bool(re.search(ANSWERED, log.read_bytes()))

    def execute(self) -> str | None:
        """Run to the end; None, or the reason of the failure.

        Raises:
            KeyboardInterrupt: after the evaluation was ended as well.
        """
        if self.folder.is_dir():
            self._set_aside()
        running = self.folder.with_name(self.folder.name + ".running")
        self._begin(running)
        log = running / "log.txt"
        environment = self.environment | {"HIPRUNE_ANSWERS": str(running / ANSWERS)}
        status = _stream(self.command(running), environment, log)
        # lmms-eval ends with status 0 after an exception too: the results file tells.
        fault = fault_of(running, self.task)
        if status == 0 and fault is None:
            shutil.rmtree(running / ANSWERS, ignore_errors=True)  # the samples' file has them
            running.rename(self.folder)
            return None
        written = bool(results_files(running))
        running.rename(self.failed_folder)
        if status == 0 and written:
            return fault.replace(str(running), str(self.failed_folder))
        return _reason(self.failed_folder / "log.txt", status)

    def _begin(self, running: Path) -> None:
        """An empty folder but for the answers of a start that was cut off or has failed."""
        for stale in (running, self.failed_folder):
            kept = stale / ANSWERS
            if stale.is_dir() and not kept.is_dir():
                shutil.rmtree(stale)
        first, *others = [s for s in (running, self.failed_folder) if s.is_dir()] or [running]
        for stale in others:  # of an earlier start, whose answers the later one had
            shutil.rmtree(stale)
        if first != running:
            first.rename(running)
        running.mkdir(parents=True, exist_ok=True)
        for path in running.iterdir():
            if path.name != ANSWERS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _set_aside(self) -> None:
        number = 1
        while (old := self.folder.with_name(f"{self.folder.name}.{number}.old")).exists():
            number += 1
        print(f"    not usable: {self.fault}; set aside as {old}", flush=True)
        self.folder.rename(old)


def _stream(command: list[str], environment: dict[str, str], log: Path) -> int:
    """The command's exit status; its output goes to ``log``, its progress to a terminal."""
    ours = {name: value for name, value in os.environ.items() if not FOREIGN.fullmatch(name)}
    # A group of its own, so that every process of it can be ended together; and a guard, which
    # ends it where this process is killed and cannot.
    process = subprocess.Popen(
        [sys.executable, "-S", str(GUARD), *command],
        env=ours | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        with open(log, "wb") as file:
            rest = b""
            while block := process.stdout.read1():
                file.write(block)
                file.flush()
                *pieces, rest = re.split(rb"[\r\n]", rest + block)
                _show([*pieces, rest])
        return process.wait()
    finally:
        _end(process)
        if sys.stdout.isatty():
            print("\r\033[K", end="", flush=True)


def _show(pieces: list[bytes]) -> None:
    bars = [piece for piece in pieces if PROGRESS in piece]
    if bars and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 5
        text = bars[-1].decode(errors="replace").split(":", 1)[-1].strip()
        print(f"\r\033[K    {text[:width]}", end="", flush=True)


def _end(process: subprocess.Popen) -> None:
    process.stdin.close()  # the guard ends the command, and what is out of its group
    with suppress(subprocess.TimeoutExpired):
        process.wait(2 * GRACE_SECONDS)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(GRACE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _reason(log: Path, status: int) -> str:
    """The last thing in a log that reads like the cause of a failure."""
    if status == -signal.SIGKILL:  # nothing in the log can be the cause
        return f"killed by SIGKILL{OUT_OF_MEMORY}"
    text = log.read_text(errors="replace")
    told = re.findall(r"Error during evaluation: (.+?)\. Please set `--verbosity", text, re.S)
    # "task ..., sample ...": how our model ends when it is one process of several.
    causes_begin = r"(?:\w+\.)*\w*(?:Error|Exception)\b|task \S+, sample "
    errors = re.findall(rf"^(?:\[rank\d+\]: *)?((?:{causes_begin}).*)$", text, re.M)
    candidates = [*told[-1:], *reversed(errors)]
    causes = [line for line in candidates if not re.match(WRAPPERS, line)]
    if causes:
        return _one_line(causes[0])
    signals = re.findall(SIGNALLED, text)
    if "SIGKILL" in signals:  # torchrun ends the other processes by SIGTERM
        return f"one of the processes was killed by SIGKILL{OUT_OF_MEMORY}"
    if signals:
        return f"one of the processes was ended by {signals[0]}"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    if candidates:
        return _one_line(candidates[0])
    lines = [line for line in text.splitlines() if line.strip()]
    return f"exit status {status}" + (f": {lines[-1].strip()[:300]}" if lines else "")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]
