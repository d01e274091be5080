"""Tiny checkpoints for the tests: the real code path without real weights.

The weights are random (fixed seed); what is real is everything that the code sees: file format,
tokenizer, image processor, grid, depth and output layer of the encoder, views and windows. Its
answers are "Yes" or "No" by chance.
"""

from __future__ import annotations

from pathlib import Path

FAMILIES = ("llava", "llava_next", "llava_hf", "llava_next_hf", "qwen2_5_vl", "qwen3_vl")


def make_checkpoint(directory: Path, family: str = "llava", **settings: int) -> Path:
    """Write a checkpoint and return its folder.

    Args:
        directory: where. The `llava` package wants "llava" in its last part. Made if missing.
        family: "llava" or "llava_next", in the liuhaotian format (needs the `llava` package);
            "llava_hf", "llava_next_hf", "qwen2_5_vl" or "qwen3_vl", in transformers' (needs its
            version 5).
        settings: of the function of this name in the family's module.
    """
    if family == "qwen2_5_vl":
        from random_qwen import make_checkpoint as make

        return make(directory, **settings)
    if family == "qwen3_vl":
        from random_qwen3 import make_checkpoint as make

        return make(directory, **settings)
    if family in ("llava_hf", "llava_next_hf"):
        from random_llava_hf import make_checkpoint as make

        return make(directory, family.removesuffix("_hf"), **settings)
    if family in FAMILIES:
        from random_llava import make_checkpoint as make

        return make(directory, family, **settings)
    raise SystemExit(f"family={family!r}: expected one of {', '.join(FAMILIES)}")
