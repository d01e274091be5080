"""BenchError: a setting that cannot be measured; and what counts as running out of memory."""

from __future__ import annotations

import torch


class BenchError(ValueError):
    """Names the argument, the value found and what is expected."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a run failed for want of memory, on a GPU or (torch says it in words) on a CPU."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
