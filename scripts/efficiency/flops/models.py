"""The image of a model's table, and the counter of the model on it."""

from __future__ import annotations

from scripts.efficiency.architectures import Architecture
from scripts.efficiency.flops.count import Counts, Picture

IMAGE_SIZE = (896, 896)  # of Qwen2.5-VL, width and height: 1024 tokens
MERGE = 2
# Of the released Qwen2.5-VL checkpoints' processors (preprocessor_config.json): 4 to 16384 tokens.
MIN_PIXELS, MAX_PIXELS = 3136, 12845056


def picture_of(architecture: Architecture, image_size: tuple[int, int]) -> Picture:
    """LLaVA: the views of the paper's tables; Qwen2.5-VL: an image of (width, height) pixels.

    Raises:
        ValueError: sides that the processor of Qwen2.5-VL refuses.
    """
    vision = architecture.vision
    if architecture.visual_tokens is not None:
        side = vision.image_size // vision.patch
        return Picture(architecture.visual_tokens // side**2, side, side)
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    width, height = image_size
    height, width = smart_resize(height, width, vision.patch * MERGE, MIN_PIXELS, MAX_PIXELS)
    return Picture(1, height // vision.patch, width // vision.patch, MERGE)


def counts_of(architecture: Architecture, picture: Picture) -> Counts:
    """Build the model on the meta device; Qwen2.5-VL needs transformers 5.17 or newer."""
    if architecture.family == "qwen2_5_vl":
        from scripts.efficiency.flops.qwen import QwenCounts

        return QwenCounts(architecture, picture)
    from scripts.efficiency.flops.llava import LlavaCounts

    return LlavaCounts(architecture, picture)
