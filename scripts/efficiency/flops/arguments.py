"""The command line of flops.py, and its --help."""

from __future__ import annotations

import argparse
import textwrap

from scripts.efficiency.architectures import ARCHITECTURES
from scripts.efficiency.flops.conventions import CONVENTIONS, PASSES, TEXT_TOKENS
from scripts.efficiency.flops.picture import IMAGE_SIZE


def make_parser() -> argparse.ArgumentParser:
    """Options as text; :mod:`scripts.efficiency.flops.settings` checks what they say."""
    parser = argparse.ArgumentParser(
        prog="flops.py",
        description="FLOPs of a prompt with one image up to the first answer token: vision "
        "tower, scoring,\nprojector, language model and total, unpruned and at every budget. "
        "Counted with fvcore\non models without weights: no GPU, no hub.",
        epilog="\n\n".join(
            textwrap.fill(f"convention {c.name}, in T {c.unit}: {c.meaning}", 80)
            for c in CONVENTIONS.values()
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listed = {"action": "append", "metavar": "NAME[,NAME...]"}
    parser.add_argument(
        "--model",
        **listed,
        help=f"which models, repeatable (default all): {', '.join(ARCHITECTURES)}",
    )
    parser.add_argument(
        "--convention", **listed, help=f"which tables (default all): {', '.join(CONVENTIONS)}"
    )
    parser.add_argument(
        "--retention",
        action="append",
        metavar="N[,N...]",
        help="budgets beside the unpruned model: tokens per image (192) or a share in (0, 1] of "
        "them (0.334). Default: the paper's",
    )
    parser.add_argument(
        "--text-tokens",
        metavar="N",
        default=str(TEXT_TOKENS),
        help="of the prompt, without the image's (default %(default)s: with these the paper's "
        "table comes out)",
    )
    parser.add_argument(
        "--image-size",
        metavar="WxH",
        default="x".join(map(str, IMAGE_SIZE)),
        help="of Qwen2.5-VL's image, in pixels; rounded to multiples of 28 as its processor does "
        "(default %(default)s: 1024 tokens). LLaVA's images are those of the paper's tables",
    )
    parser.add_argument(
        "--passes",
        metavar="N",
        default=str(PASSES),
        help="of the scoring over QK^T, in the convention 'executed': 2 as the kernel on a GPU, "
        "1 as on a CPU (default %(default)s)",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write all figures, in full and with versions and command, to a file; without a name "
        "or as - to the standard output, in place of the tables",
    )
    return parser
