"""The released models' architectures, and tiny ones: what it takes to build or count them."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.benchmarks import BENCHMARKS, LLAVA_TINY, QWEN_TINY


@dataclass(frozen=True)
class Vision:
    """A vision tower. CLIP keeps a CLS token; Qwen2.5-VL's has windows and a merger."""

    layers: int
    width: int
    heads: int
    mlp: int
    patch: int
    image_size: int | None = None  # side of a view in pixels; None: any size
    full_attention: tuple[int, ...] = ()  # blocks (from 0) without windows; empty: all


@dataclass(frozen=True)
class Text:
    """A language model: Llama's layers (Vicuna) or Qwen2.5's (biases in q, k, v; grouped keys)."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool = False  # lm_head shares the embeddings' weights
    positions: int = 4096


@dataclass(frozen=True)
class Architecture:
    """One released model.

    Attributes:
        name: as the command lines take it.
        family: as HiPruneConfig.from_env names it.
        checkpoint: on the hub, in transformers' format.
        retentions: the paper's budgets.
        visual_tokens: N of the paper's tables; None: it goes by the image.
    """

    name: str
    family: str
    checkpoint: str
    vision: Vision
    text: Text
    retentions: tuple[int | float, ...]
    visual_tokens: int | None = None


CLIP_L_336 = Vision(layers=24, width=1024, heads=16, mlp=4096, patch=14, image_size=336)
QWEN_VIT = Vision(
    layers=32, width=1280, heads=16, mlp=3420, patch=14, full_attention=(7, 15, 23, 31)
)
VICUNA_7B = Text(layers=32, width=4096, heads=32, kv_heads=32, mlp=11008, vocabulary=32000)
VICUNA_13B = Text(layers=40, width=5120, heads=40, kv_heads=40, mlp=13824, vocabulary=32000)

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "llava-1.5-7b",
            "llava",
            "llava-hf/llava-1.5-7b-hf",
            CLIP_L_336,
            VICUNA_7B,
            BENCHMARKS["llava"].retentions,
            576,
        ),
        Architecture(
            "llava-1.5-13b",
            "llava",
            "llava-hf/llava-1.5-13b-hf",
            CLIP_L_336,
            VICUNA_13B,
            BENCHMARKS["llava"].retentions,
            576,
        ),
        Architecture(
            "llava-next-7b",
            "llava_next",
            "llava-hf/llava-v1.6-vicuna-7b-hf",
            CLIP_L_336,
            VICUNA_7B,
            BENCHMARKS["llava_next"].retentions,
            2880,
        ),
        Architecture(
            "qwen2.5-vl-3b",
            "qwen2_5_vl",
            "Qwen/Qwen2.5-VL-3B-Instruct",
            QWEN_VIT,
            Text(36, 2048, 16, 2, 11008, 151936, tied=True, positions=128000),
            BENCHMARKS["qwen2_5_vl"].retentions,
        ),
        Architecture(
            "qwen2.5-vl-7b",
            "qwen2_5_vl",
            "Qwen/Qwen2.5-VL-7B-Instruct",
            QWEN_VIT,
            Text(28, 3584, 28, 4, 18944, 152064, positions=128000),
            BENCHMARKS["qwen2_5_vl"].retentions,
        ),
    )
}


_CLIP = Vision(layers=24, width=64, heads=4, mlp=128, patch=14, image_size=168)
_LLAMA = Text(layers=4, width=64, heads=4, kv_heads=4, mlp=128, vocabulary=512)

TINY = {
    architecture.name: architecture
    for architecture in (
        Architecture("tiny", "llava", "", _CLIP, _LLAMA, LLAVA_TINY.retentions, 144),
        Architecture("tiny-next", "llava_next", "", _CLIP, _LLAMA, (160, 80, 40), 720),
        Architecture(
            "tiny-qwen",
            "qwen2_5_vl",
            "",
            Vision(layers=32, width=64, heads=4, mlp=128, patch=14, full_attention=(7, 15, 23, 31)),
            # Heads of 128, as the real model's M-RoPE sections add up to.
            Text(layers=3, width=256, heads=2, kv_heads=1, mlp=256, vocabulary=512),
            QWEN_TINY.retentions,
        ),
    )
}
MODELS = {**ARCHITECTURES, **TINY}
