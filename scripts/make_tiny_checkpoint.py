"""Make a tiny checkpoint: the real code path without the real weights.

The weights are random (fixed seed); what is real is everything that the code sees: file format,
tokenizer, image processor, grid, depth and output layer of the encoder, views and windows. Its
answers are "Yes" or "No" by chance, so that scores are those of guessing.

    python scripts/make_tiny_checkpoint.py --family llava --output .tiny/llava-v1.5-tiny
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

FAMILIES = ("llava", "llava_next", "llava_hf", "llava_next_hf", "qwen2_5_vl")


def make_checkpoint(directory: Path, family: str = "llava", **settings: int) -> Path:
    """Write a checkpoint and return its folder.

    Args:
        directory: where. The `llava` package wants "llava" in its last part. Made if missing.
        family: "llava" or "llava_next", in the liuhaotian format (needs the `llava` package);
            "llava_hf", "llava_next_hf" or "qwen2_5_vl", in transformers' (needs its version 5).
        settings: of the function of this name in the family's module.
    """
    if family == "qwen2_5_vl":
        from tiny_qwen import make_checkpoint as make

        return make(directory, **settings)
    if family in ("llava_hf", "llava_next_hf"):
        from tiny_llava_hf import make_checkpoint as make

        return make(directory, family.removesuffix("_hf"), **settings)
    if family in FAMILIES:
        from tiny_llava import make_checkpoint as make

        return make(directory, family, **settings)
    raise SystemExit(f"family={family!r}: accepted is one of {', '.join(FAMILIES)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=FAMILIES, default="llava")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    directory = make_checkpoint(args.output, args.family, seed=args.seed)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(json.dumps({"checkpoint": str(directory), "MB": round(size / 1e6, 1)}))


if __name__ == "__main__":
    main()
