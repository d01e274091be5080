"""The image of a model's table, and the counter of the model on it."""

from __future__ import annotations

from functools import cache

from scripts.efficiency.architectures import Architecture
from scripts.efficiency.flops.count import Counts, Picture

IMAGE_SIZE = (896, 896)  # of Qwen's, width and height: 1024 tokens, of Qwen3-VL 784
MERGE = 2
# Of the released checkpoints' processors (preprocessor_config.json): 4 to 16384 tokens; Qwen3-VL's
# (shortest_edge, longest_edge) 64 to 16384.
PIXELS = {
    "qwen2_vl": (3136, 12845056),
    "qwen2_5_vl": (3136, 12845056),
    "qwen3_vl": (65536, 16777216),
}


def picture_of(architecture: Architecture, image_size: tuple[int, int]) -> Picture:
    """Views of one size: those of the tables. Qwen's: an image of (width, height) pixels.

    Raises:
        ValueError: sides that the processors of Qwen's refuse.
    """
    vision = architecture.vision
    if architecture.visual_tokens is not None:
        side = vision.image_size // vision.patch
        merge = MERGE if architecture.family == "internvl" else 1  # the pixel shuffle
        return Picture(architecture.visual_tokens // (side // merge) ** 2, side, side, merge)
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    width, height = image_size
    unit, limits = vision.patch * MERGE, PIXELS[architecture.family]
    height, width = smart_resize(height, width, unit, *limits)
    return Picture(1, height // vision.patch, width // vision.patch, MERGE)


def counts_of(architecture: Architecture, picture: Picture) -> Counts:
    """Build the model on the meta device; all but LLaVA's need transformers 5.17 or newer."""
    if architecture.is_qwen:
        from scripts.efficiency.flops.qwen import QwenCounts

        return _Once(QwenCounts(architecture, picture))
    from scripts.efficiency.flops.views import ViewCounts

    return _Once(ViewCounts(architecture, picture))


class _Once:
    """Counts with a memory: rows and conventions ask for the same parts, a trace each."""

    def __init__(self, counts: Counts) -> None:
        self.tower = cache(counts.tower)
        self.pruned_tower = cache(counts.pruned_tower)
        self.scoring_pass = cache(counts.scoring_pass)
        self.projector = cache(counts.projector)
        self.layers = cache(counts.layers)
        self.lm_head = cache(counts.lm_head)
