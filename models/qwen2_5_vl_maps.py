"""Qwen2.5-VL's vision tower, all blocks scored."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hiprune.models.qwen2_5_vl_attention import scored_layer
from hiprune.models.transformers_version import require_transformers
from torch import Tensor

from hiprune.capture import AttentionCapture
from hiprune.errors import HiPruneError

_PERMUTE = "permute_input_for_window_attn"


def extra_tokens(visual: Any) -> int:
    """None: the tower has image tokens alone."""
    return 0


def run(
    visual: Any, pixel_values: Tensor, *, grid_thw: Tensor | None = None, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """(blocks, frames, N) scores and (frames, N, C) merged tokens; see :mod:`hiprune.maps`."""
    require_transformers()
    if _PERMUTE in vars(visual):
        raise HiPruneError(
            "vision_model: HiPrune is applied to it, so that its last block runs in part; accepted "
            "is the unpatched tower (remove() the handle)"
        )
    tokens = _tokens(visual, grid_thw)
    capture = AttentionCapture(
        {number: scored_layer(block.attn) for number, block in enumerate(visual.blocks, start=1)}
    )
    try:
        with capture.recording(), _window_order(visual) as order:
            output = visual(pixel_values, grid_thw, **inputs)
            scores = capture.scores()
    finally:
        capture.remove()
    device = scores[1].device  # the blocks may lie on several
    unit = visual.spatial_merge_unit
    patches = torch.stack([scores[n].to(device) for n in sorted(scores)])  # (blocks, 4 sum of N)
    # 4 consecutive patches are one token: their mean, in raster order
    merged = patches.unflatten(1, (-1, unit)).mean(dim=2)[:, torch.argsort(order[0]).to(device)]
    # The sum over the frame's 4 N queries is turned into the mean.
    maps = merged.unflatten(1, (-1, tokens)) / (tokens * unit)
    return maps, output.pooler_output.unflatten(0, (-1, tokens))


def _tokens(visual: Any, grid_thw: Tensor | None) -> int:
    """N of each frame."""
    if not isinstance(grid_thw, Tensor) or grid_thw.ndim != 2 or grid_thw.shape[1] != 3:
        found = tuple(grid_thw.shape) if isinstance(grid_thw, Tensor) else grid_thw
        raise HiPruneError(
            f"grid_thw={found}: accepted is a tensor (images, 3) of frames, rows and columns of "
            "patches (the processor's image_grid_thw)"
        )
    grids = {(height, width) for _, height, width in grid_thw.tolist()}
    if len(grids) != 1:
        raise HiPruneError(
            f"grid_thw: patches {sorted(grids)}; accepted are images of one grid, since maps are "
            "one tensor (images, tokens): give images of other grids one by one"
        )
    height, width = grids.pop()
    return height * width // visual.spatial_merge_unit


@contextmanager
def _window_order(visual: Any) -> Iterator[list[Tensor]]:
    """Note, while it lasts, the (sum of N,) raster indices that the tower puts its tokens in."""
    found: list[Tensor] = []
    original = getattr(visual, _PERMUTE)

    @functools.wraps(original)
    def permute(input_tensor: Tensor, window_index: Tensor, **kwargs: Any) -> Tensor:
        found.append(window_index)
        return original(input_tensor, window_index, **kwargs)

    setattr(visual, _PERMUTE, permute)
    try:
        yield found
    finally:
        delattr(visual, _PERMUTE)
