"""Tiny architectures: the depth and the grids of the real models, none of their width."""

from __future__ import annotations

from scripts.efficiency.architectures import ARCHITECTURES, Architecture, Text, Vision

_CLIP = Vision(layers=24, width=64, heads=4, mlp=128, patch=14, image_size=168)
_LLAMA = Text(layers=4, width=64, heads=4, kv_heads=4, mlp=128, vocabulary=512)

TINY = {
    architecture.name: architecture
    for architecture in (
        Architecture("tiny", "llava", "", _CLIP, _LLAMA, (48, 32, 16), 144),
        Architecture("tiny-next", "llava_next", "", _CLIP, _LLAMA, (160, 80, 40), 720),
        Architecture(
            "tiny-qwen",
            "qwen2_5_vl",
            "",
            Vision(layers=32, width=64, heads=4, mlp=128, patch=14, full_attention=(7, 15, 23, 31)),
            # Heads of 128, as the real model's M-RoPE sections add up to.
            Text(layers=3, width=256, heads=2, kv_heads=1, mlp=256, vocabulary=512),
            (0.334, 0.223, 0.112),
        ),
    )
}
MODELS = {**ARCHITECTURES, **TINY}
