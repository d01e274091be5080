"""One evaluation in a process of its own: progress on the terminal, the rest in a log."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROGRESS = b"Model Responding"  # what lmms-eval's models call their progress bar
ANSWERED = PROGRESS + rb":[^\r\n]*?\b[1-9]\d*/\d+ \["
GRACE_SECONDS = 20
# What is raised around a cause and tells less than it.
WRAPPERS = (
    r"(?:\w+\.)*(?:RetryError|ChildFailedError|CalledProcessError: .*returned non-zero exit status)"
)


@dataclass(frozen=True)
class Run:
    """One (budget, task): its command, the variables it sets, and the folder of its results.

    The folder exists only once the run has finished; until then its name ends in ".running", and
    after a failure in ".failed". So what is finished is seen from the names alone.
    """

    label: str
    command: Callable[[Path], list[str]]  # folder to write to -> command line
    environment: dict[str, str]
    folder: Path

    @property
    def finished(self) -> bool:
        return self.folder.is_dir()

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
        running = self.folder.with_name(self.folder.name + ".running")
        for stale in (running, self.failed_folder):
            shutil.rmtree(stale, ignore_errors=True)
        running.mkdir(parents=True)
        log = running / "log.txt"
        status = _stream(self.command(running), self.environment, log)
        # lmms-eval ends with status 0 after an exception too: the results file tells.
        if status == 0 and any(running.rglob("*_results.json")):
            running.rename(self.folder)
            return None
        running.rename(self.failed_folder)
        return _reason(self.failed_folder / "log.txt", status)


def _stream(command: list[str], environment: dict[str, str], log: Path) -> int:
    """The command's exit status; its output goes to ``log``, its progress to a terminal."""
    # A group of its own, so that every process of it can be ended together.
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
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
    text = log.read_text(errors="replace")
    told = re.findall(r"Error during evaluation: (.+?)\. Please set `--verbosity", text, re.S)
    # "task ..., sample ...": how our model ends when it is one process of several.
    kinds = r"(?:\w+\.)*\w*(?:Error|Exception)\b|task \S+, sample "
    errors = re.findall(rf"^(?:\[rank\d+\]: *)?((?:{kinds}).*)$", text, re.M)
    said = [*told[-1:], *reversed(errors)]
    if said:
        causes = [line for line in said if not re.match(WRAPPERS, line)]
        return " ".join((causes or said)[0].split())[:500]
    lines = [line for line in text.splitlines() if line.strip()]
    return f"exit status {status}" + (f": {lines[-1].strip()[:300]}" if lines else "")
