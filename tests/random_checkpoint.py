"""Tiny checkpoints for the tests: the real code path without real weights.

The weights are random (fixed seed); what is real is everything that the code sees: file format,
tokenizer, image processor, grid, depth and output layer of the encoder, views and windows. Its
answers are "Yes" or "No" by chance.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

# Family -> the module whose make_checkpoint writes it.
MODULES = {
    "llava": "random_llava",
    "llava_next": "random_llava",
    "llava_hf": "random_llava_hf",
    "llava_next_hf": "random_llava_hf",
    "qwen2_5_vl": "random_qwen",
    "qwen3_vl": "random_qwen3",
    "video_llava": "random_video_llava",
}


def make_checkpoint(directory: Path, family: str = "llava", **settings: int) -> Path:
    """Write a checkpoint and return its folder.

    Args:
        directory: where. The `llava` package wants "llava" in its last part. Made if missing.
        family: "llava" or "llava_next", in the liuhaotian format (needs the `llava` package);
            the others in transformers' (needs its version 5).
        settings: of the function of this name in the family's module.
    """
    if family not in MODULES:
        raise SystemExit(f"family={family!r}: expected one of {', '.join(MODULES)}")
    make = import_module(MODULES[family]).make_checkpoint
    if MODULES[family].startswith("random_llava"):
        settings["family"] = family.removesuffix("_hf")
    return make(directory, **settings)
