"""One OpenAI-compatible server of vLLM in processes of its own, and what it tells of itself."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hiprune import HiPruneError
from scripts import guard
from scripts.guard import GRACE_SECONDS

READY_SECONDS = 900
MODEL = "served"  # the model's name in requests


class Server:
    """A server that is starting; a context manager that ends it.

    Args:
        label: what it is called in messages.
        checkpoint: a folder, or a name on the hub.
        settings: HiPrune's, of the engine; None: vLLM as it is.
        arguments: vLLM's.
        environment: variables beside those of this process.
        log: gets its output.
    """

    def __init__(
        self,
        label: str,
        checkpoint: str,
        settings: Mapping[str, object] | None,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        self.label, self.log, self.port = label, log, _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-S", guard.__file__, sys.executable, "-W", "ignore"]
        command += ["-m", "vllm.entrypoints.openai.api_server", "--model", checkpoint]
        command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(self.port)]
        if settings is not None:
            command += ["--hf-overrides", json.dumps({"hiprune": dict(settings)})]
        ours = {n: value for n, value in os.environ.items() if not n.startswith("HIPRUNE_")}
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [*command, *arguments],
                env=ours | dict(environment),
                stdin=subprocess.PIPE,  # where this process is killed, the guard ends the server
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_SECONDS)
                return

    def wait(self, seconds: float = READY_SECONDS) -> None:
        """Until it answers.

        Raises:
            HiPruneError: it ended, or does not answer in time.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise HiPruneError(f"{self.label}: the server ended: {self._reason()} ({self.log})")
            with suppress(OSError, urllib.error.URLError):
                self._get("/health")
                return
            time.sleep(0.2)
        raise HiPruneError(f"{self.label}: no answer in {seconds:.0f} s ({self.log})")

    def metrics(self) -> dict[str, float]:
        """vLLM's own counters and gauges, without the "vllm:" before their names."""
        found: dict[str, float] = {}
        for line in self._get("/metrics").splitlines():
            match = re.fullmatch(r"vllm:(\w+)(?:\{.*\})? (\S+)", line)
            if match:
                found[match[1]] = found.get(match[1], 0.0) + float(match[2])
        return found

    def cache_tokens(self) -> tuple[int, int]:
        """Tokens that the KV cache holds, and of one of its blocks."""
        labels = dict(re.findall(r'(\w+)="(\d+)"', self._config()))
        block = int(labels["block_size"])
        blocks = labels.get("num_gpu_blocks") or labels.get("num_cpu_blocks")
        return int(blocks) * block, block

    def engine_processes(self) -> list[int]:
        """The engine and its workers; empty where there is no /proc."""
        aside = {self.process.pid, self._front_end()}
        return [pid for pid in _group(self.process.pid) if pid not in aside]

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far of the front end, and of the engine's processes; {} where unknown."""
        front = self._front_end()
        if front is None:
            return {}
        engine = sum(map(_cpu_seconds, self.engine_processes()))
        return {"front_cpu": _cpu_seconds(front), "engine_cpu": engine}

    def _front_end(self) -> int | None:
        """The guard's child, whose children all others are."""
        members = _group(self.process.pid)
        return next((pid for pid, parent in members.items() if parent == self.process.pid), None)

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read().decode()

    def _config(self) -> str:
        lines = self._get("/metrics").splitlines()
        return next((line for line in lines if line.startswith("vllm:cache_config_info{")), "")

    def _reason(self) -> str:
        text = self.log.read_text(errors="replace")
        errors = re.findall(r"((?:\w+\.)*\w*(?:Error|Exception): .+)", text)
        told = [line for line in errors if "Engine core init" not in line] or errors
        ours = [line for line in told if "HiPrune" in line or "hiprune" in line]
        lines = [line for line in text.splitlines() if line.strip()] or ["nothing"]
        return (ours or told or lines)[-1].strip()[:300]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _group(leader: int) -> dict[int, int]:
    """Process -> its parent, of a session; empty where there is no /proc."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == leader:
                found[int(folder.name)] = int(fields[1])
    return found


def _cpu_seconds(pid: int) -> float:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0.0
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
