"""The released models' architectures, and tiny ones: what it takes to build or count them.

The numbers are those of the released configurations (config.json), or, where named at the model, of
what has them in the open.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from scripts.benchmarks import BENCHMARKS, LLAVA_TINY, QWEN_TINY


@dataclass(frozen=True)
class Vision:
    """A vision tower. CLIP and InternViT have a CLS token, SigLIP none; Qwen's have a merger."""

    layers: int
    width: int
    heads: int
    mlp: int
    patch: int
    image_size: int | None = None  # side of a view in pixels; None: any size
    full_attention: tuple[int, ...] = ()  # blocks (from 0) without windows; empty: all
    deepstack: tuple[int, ...] = ()  # blocks (from 0) after which DeepStack's features are taken


@dataclass(frozen=True)
class Text:
    """A language model: Llama's layers (Vicuna) or Qwen's (grouped keys)."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool = False  # lm_head shares the embeddings' weights
    positions: int = 4096
    head: int | None = None  # width of a head; None: width / heads

    @property
    def head_width(self) -> int:
        return self.head or self.width // self.heads


@dataclass(frozen=True)
class Architecture:
    """One released model.

    Attributes:
        name: as the command lines take it.
        family: as HiPruneConfig.from_env names it.
        checkpoint: on the hub, in transformers' format.
        retentions: the paper's budgets; of families that it lacks Qwen2.5-VL's shares.
        visual_tokens: N of the paper's tables, or, where they lack the family, of an image of 896
            x 896 pixels; None: it goes by the image.
    """

    name: str
    family: str
    checkpoint: str
    vision: Vision
    text: Text
    retentions: tuple[int | float, ...]
    visual_tokens: int | None = None

    @property
    def is_qwen(self) -> bool:
        """Images of any size, tokens of 2 x 2 patches?"""
        return self.family.startswith("qwen")

    @property
    def needs_own(self) -> bool:
        """Is the model in transformers 5 alone?"""
        return self.family not in ("llava", "llava_next")


CLIP_L_336 = Vision(layers=24, width=1024, heads=16, mlp=4096, patch=14, image_size=336)
QWEN_VIT = Vision(
    layers=32, width=1280, heads=16, mlp=3420, patch=14, full_attention=(7, 15, 23, 31)
)
# Qwen/Qwen2-VL-7B-Instruct, as transformers' Qwen2VLVisionConfig has it (mlp_ratio 4).
QWEN2_VIT = Vision(layers=32, width=1280, heads=16, mlp=5120, patch=14)
# vision_config of Qwen/Qwen3-VL-4B-Instruct's config.json, read in a copy of it.
QWEN3_VIT_24 = Vision(layers=24, width=1024, heads=16, mlp=4096, patch=16, deepstack=(5, 11, 17))
# InternViT-300M, as transformers' InternVLVisionConfig has it (OpenGVLab/InternVL3-1B-hf). That the
# 8B model has the same is assumed: its own configuration has not been read.
INTERNVIT_300M = Vision(layers=24, width=1024, heads=16, mlp=4096, patch=14, image_size=448)
# google/siglip-so400m-patch14-384 without its last layer, as transformers' LlavaOnevisionConfig has
# it.
SIGLIP_SO400M = Vision(layers=26, width=1152, heads=16, mlp=4304, patch=14, image_size=384)
VICUNA_7B = Text(layers=32, width=4096, heads=32, kv_heads=32, mlp=11008, vocabulary=32000)
VICUNA_13B = Text(layers=40, width=5120, heads=40, kv_heads=40, mlp=13824, vocabulary=32000)
# Qwen2-7B's and Qwen2.5-7B's layers; vocabulary and positions differ.
QWEN_7B = Text(28, 3584, 28, 4, 18944, 152064, positions=32768)
SHARES = BENCHMARKS["qwen2_5_vl"].retentions

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
            SHARES,
        ),
        Architecture(
            "qwen2.5-vl-7b",
            "qwen2_5_vl",
            "Qwen/Qwen2.5-VL-7B-Instruct",
            QWEN_VIT,
            replace(QWEN_7B, positions=128000),
            SHARES,
        ),
        Architecture(
            "qwen2-vl-7b", "qwen2_vl", "Qwen/Qwen2-VL-7B-Instruct", QWEN2_VIT, QWEN_7B, SHARES
        ),
        Architecture(
            "qwen3-vl-4b",
            "qwen3_vl",
            "Qwen/Qwen3-VL-4B-Instruct",
            QWEN3_VIT_24,
            # text_config of its config.json, read in a copy of it.
            Text(36, 2560, 32, 8, 9728, 151936, tied=True, positions=262144, head=128),
            SHARES,
        ),
        Architecture(
            "internvl3-8b",
            "internvl",
            "OpenGVLab/InternVL3-8B-hf",
            INTERNVIT_300M,
            # Not read off its configuration: Qwen2.5-7B's layers, which it is said to be built on,
            # and the vocabulary that a report of vLLM's (issue 17634) mentions.
            replace(QWEN_7B, vocabulary=151674),
            SHARES,
            5 * 256,  # 2 x 2 tiles and a thumbnail
        ),
        Architecture(
            "llava-onevision-7b",
            "llava_onevision",
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            SIGLIP_SO400M,
            # Qwen/Qwen2-7B-Instruct with two placeholders, filled up to a multiple of 64, as
            # transformers' convert_llava_onevision_weights_to_hf.py makes it.
            replace(QWEN_7B, vocabulary=152128),
            SHARES,
            10 * 729,  # a base view and 3 x 3 of its grid
        ),
    )
}


_CLIP = Vision(layers=24, width=64, heads=4, mlp=128, patch=14, image_size=168)
_LLAMA = Text(layers=4, width=64, heads=4, kv_heads=4, mlp=128, vocabulary=512)
# Heads of 128, as the real models' M-RoPE sections add up to.
_QWEN = Text(layers=3, width=256, heads=2, kv_heads=1, mlp=256, vocabulary=512)

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
            _QWEN,
            QWEN_TINY.retentions,
        ),
        Architecture(
            "tiny-qwen2",
            "qwen2_vl",
            "",
            Vision(layers=4, width=64, heads=4, mlp=256, patch=14),
            _QWEN,
            QWEN_TINY.retentions,
        ),
        Architecture(
            "tiny-qwen3",
            "qwen3_vl",
            "",
            Vision(layers=4, width=64, heads=4, mlp=128, patch=16, deepstack=(0, 1, 2)),
            replace(_QWEN, width=192, head=128),
            QWEN_TINY.retentions,
        ),
        Architecture(
            "tiny-internvl",
            "internvl",
            "",
            Vision(layers=4, width=64, heads=4, mlp=128, patch=14, image_size=112),
            _QWEN,
            QWEN_TINY.retentions,
            10 * 16,
        ),
        Architecture(
            "tiny-onevision",
            "llava_onevision",
            "",
            Vision(layers=4, width=64, heads=4, mlp=128, patch=14, image_size=112),
            _QWEN,
            QWEN_TINY.retentions,
            10 * 64,
        ),
    )
}
MODELS = {**ARCHITECTURES, **TINY}
