"""Whether the GPU kernel can be relied on: tried and compared once a device, type and head size."""

from __future__ import annotations

import functools
import logging
import threading

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

OLDEST_TRITON = (3, 0)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_HEAD = 256
# Bounds of the sample's segments: shorter than a tile, over a tile's end, several tiles.
_SEGMENTS = (0, 3, 3, 90, 200)
# The kernel and the operators are within 5e-5 of each other (tests); what a kernel does wrong, a
# tile left out or a neighbour's segment, moves sums by far more.
_CLOSE = 1e-3
# Where the kernel computed something else.
_wrong: set[torch.device] = set()
_one_at_a_time = threading.Lock()


def has_kernel(tensor: Tensor) -> bool:
    """Is there a kernel for queries like these, (..., D)? If not, torch's operators will do."""
    if tensor.device.type != "cuda" or tensor.dtype not in DTYPES:
        return False
    return tensor.shape[-1] <= LARGEST_HEAD and _runs_on(
        tensor.device, tensor.dtype, tensor.shape[-1]
    )


def _runs_on(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    with _one_at_a_time:
        return device not in _wrong and _tried(device, dtype, dim)


@functools.cache
def _tried(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """The kernel on a small sample, which waits for the device, once: what is amiss shows there."""
    try:
        require_triton()
        difference = _difference(device, dtype, dim)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler that is missing, a GPU that is too old, ...
        why = f"the Triton kernel does not run: {type(error).__name__}: {error}"
    else:
        if difference <= _CLOSE:  # not so: NaN
            return True
        _wrong.add(device)
        why = f"the Triton kernel's differ by {difference:.3g} of their size: please report this"
    logger.warning(
        "scores are computed by torch on %s in %s with heads of %d, since %s",
        device,
        dtype,
        dim,
        why,
    )
    return False


def _difference(device: torch.device, dtype: torch.dtype, dim: int) -> float:
    """The largest between kernel and operators, relative, with segments and without."""
    from hiprune.scores_triton import column_sums

    generator = torch.Generator().manual_seed(0)  # on the host: nobody's draws change
    sample = torch.randn(2, 1, 2, _SEGMENTS[-1], dim, generator=generator)
    query, key = (2 * sample).to(device, dtype)  # (1, 2, N, D) each; attention with peaks
    scale = dim**-0.5
    bounds = torch.tensor(_SEGMENTS, device=device)
    segment = torch.bucketize(torch.arange(_SEGMENTS[-1], device=device), bounds, right=True)
    apart = segment.unsqueeze(1) != segment  # (N, N)
    # In float64, which neither TF32 nor autocast reach.
    logits = query.double() @ key.double().transpose(-1, -2) * scale  # (1, 2, N, N)
    found = []
    for cu_seqlens, masked in ((bounds, logits.masked_fill(apart, -torch.inf)), (None, logits)):
        expected = masked.softmax(dim=-1).sum(dim=-2)  # (1, 2, N)
        sums = column_sums(query, key, scale, cu_seqlens=cu_seqlens).double()
        # Of the mean sum, 1, or of the sum where that is more.
        found.append((sums - expected).abs() / expected.clamp(min=1))
    return torch.stack(found).max().item()  # a NaN stays one


def require_triton() -> None:
    """Raise ImportError unless Triton is there and recent enough."""
    import triton

    found = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if found < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        raise ImportError(f"triton {triton.__version__}: expected {oldest} or newer")
