"""transformers' Qwen2-VL, 5.17 to 5.x: all of its tower's blocks attend to the whole image."""

from __future__ import annotations

from typing import Any

from hiprune.models.qwen import Qwen
from hiprune.models.registry import register

from hiprune.config import Family


# l is as deep as the paper's of Qwen2.5-VL; the paper has no numbers of Qwen2-VL.
@register(
    "transformers",
    "Qwen2VLForConditionalGeneration",
    families=(Family("qwen2_vl", "HIPRUNE_QWEN_RETENTION", 0.334, 1.0, 16, encoder_layers=32),),
    encoders=("qwen2_vl_vision",),
)
class Qwen2VL(Qwen):
    def family(self, model: Any) -> str:
        return "qwen2_vl"
