"""Peak memory of a run: of the GPU's allocator, or of the process on a CPU."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
