"""Convert a LLaVA checkpoint from one format to the other; LLaVA-1.5 and LLaVA-NeXT on Llama.

    python -m scripts.convert to_llava --source assets/llava-1.5-tiny --output .tiny/llava-v1.5
    python -m scripts.convert to_hf --source .tiny/llava-v1.5 --output .tiny/llava-hf

to_llava: from transformers' own format (llava-hf) to that of the `llava` package (liuhaotian), in
either environment; to_hf: the way back, which needs transformers 5.17 or newer.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("direction", choices=("to_hf", "to_llava"))
    parser.add_argument("--source", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    # Each imports what the other environment may lack.
    convert = import_module(f"scripts.convert.{args.direction}").convert
    print(json.dumps({"checkpoint": str(convert(args.source, args.output))}))


if __name__ == "__main__":
    main()
