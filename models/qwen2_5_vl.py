"""transformers' Qwen2.5-VL, 5.17 to 5.x.

An object layer with windowed attention is scored within its windows, as the model attends.
"""

from __future__ import annotations

from typing import Any

from hiprune.models.qwen import Qwen
from hiprune.models.registry import register

from hiprune.config import Family


@register(
    "transformers",
    "Qwen2_5_VLForConditionalGeneration",
    families=(Family("qwen2_5_vl", "HIPRUNE_QWEN_RETENTION", 0.334, 1.0, 16, encoder_layers=32),),
    encoders=("qwen2_5_vl_vision",),
)
class Qwen25VL(Qwen):
    def family(self, model: Any) -> str:
        return "qwen2_5_vl"
