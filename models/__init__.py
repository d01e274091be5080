"""One adapter a model family: what HiPrune changes in that family's released code.

Importing this package fills the registry (:mod:`hiprune.models.registry`); it imports no package
that models come from.
"""

from hiprune.models import (
    encoders,
    internvl,
    llava,
    llava_hf,
    llava_onevision,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
    video_llava,
)

__all__ = [
    "encoders",
    "internvl",
    "llava",
    "llava_hf",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "video_llava",
]
