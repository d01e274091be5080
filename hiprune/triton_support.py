"""Whether the GPU kernel can run: tried once a device, type and head size, and told in the log."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

OLDEST_TRITON = (3, 0)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_HEAD = 256


def has_kernel(tensor: Tensor) -> bool:
    """Is there a kernel for queries like these, (..., D)? If not, torch's operators will do."""
    if tensor.device.type != "cuda" or tensor.dtype not in DTYPES:
        return False
    return tensor.shape[-1] <= LARGEST_HEAD and _runs_on(
        tensor.device, tensor.dtype, tensor.shape[-1]
    )


@functools.cache
def _runs_on(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """One launch of the kernel on few tokens: what a machine lacks shows there."""
    try:
        require_triton()
        from hiprune.scores_triton import column_sums

        sample = torch.zeros(1, 1, 16, dim, device=device, dtype=dtype)
        column_sums(sample, sample, 1.0)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler that is missing, a GPU that is too old, ...
        logger.warning(
            "scores are computed by torch on %s in %s with heads of %d, since the Triton kernel "
            "does not run: %s: %s",
            device,
            dtype,
            dim,
            type(error).__name__,
            error,
        )
        return False
    return True


def require_triton() -> None:
    """Raise ImportError unless Triton is there and recent enough."""
    import triton

    found = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if found < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        raise ImportError(f"triton {triton.__version__}: accepted is {oldest} or newer")
