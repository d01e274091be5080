"""Where the time of one run goes, in nested spans, and the peak of its memory."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

OTHER = "other"  # what no span covers
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Clock(Protocol):
    """Marks of time. Only :meth:`synchronise` may wait for the device."""

    def mark(self) -> Any: ...

    def seconds(self, start: Any, end: Any) -> float: ...

    def synchronise(self) -> None: ...


class HostClock:
    """A CPU's monotonic clock."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def synchronise(self) -> None:
        pass


class CudaClock:
    """CUDA events: marks lie on the stream among the kernels, and taking one waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1000

    def synchronise(self) -> None:
        torch.cuda.synchronize(self.device)


def clock_of(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else HostClock()


def per_call(clock: Clock, call: Callable[[], object], calls: int) -> float:
    """Seconds of a call, the mean of so many one after the other."""
    clock.synchronise()
    start = clock.mark()
    for _ in range(calls):
        call()
    end = clock.mark()
    clock.synchronise()
    return clock.seconds(start, end) / calls


class Stopwatch:
    """Times one run; every moment of it belongs to the innermost span open at that moment.

    So a span's time is exclusive, and the spans and :data:`OTHER` add up to the whole run.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._open: list[str] = []
        self._marks: list[tuple[str, Any]] = []  # what begins at which mark

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the block, the device's work included."""
        self._open, self._marks = [], []
        self.clock.synchronise()
        self._note()
        yield
        if self._open:
            raise RuntimeError(f"span {self._open[-1]!r} was not left by the end of the run")
        self._note()
        self.clock.synchronise()

    def enter(self, span: str) -> None:
        self._open.append(span)
        self._note()

    def leave(self, span: str) -> None:
        if not self._open or self._open[-1] != span:
            raise RuntimeError(f"span {span!r} was left; open are {self._open}")
        self._open.pop()
        self._note()

    def seconds(self) -> dict[str, float]:
        """Span -> seconds of the last run, exclusive, all its visits together."""
        found: dict[str, float] = {OTHER: 0.0}
        for (span, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            found[span] = found.get(span, 0.0) + self.clock.seconds(start, end)
        return found

    def _note(self) -> None:
        self._marks.append((self._open[-1] if self._open else OTHER, self.clock.mark()))


class PeakMemory:
    """The peak between :meth:`reset` and :meth:`read`.

    On a GPU what torch's allocator handed out; on a CPU the resident memory of the process, whose
    high-water mark Linux resets on request (proc(5), clear_refs).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: int | None = None

    def reset(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._held = torch.cuda.memory_allocated(self.device)
            return
        _give_back_freed()
        try:
            CLEAR.write_text("5")
            self._held = _status("VmRSS")
        except OSError:  # another system, or a container that forbids it
            self._held = None

    def read(self) -> dict[str, float]:
        """Bytes: "peak_memory", and "extra_memory", by how much it is over what was held before.

        Empty where the system cannot tell.
        """
        if self._held is None:
            return {}
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _status("VmHWM")
        return {"peak_memory": peak, "extra_memory": peak - self._held}


def free_memory(device: torch.device) -> None:
    """After a run that failed: what it held must not fail the next one."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _status(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024  # "123 kB"
    raise OSError(f"{STATUS} has no {name}")


def _give_back_freed() -> None:
    """What an earlier run freed but the C library kept would hide what this run needs."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return
