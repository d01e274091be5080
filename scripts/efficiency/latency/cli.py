"""The command line of bench_sys.py: every argument is checked before a model is built."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hiprune import HiPruneConfig, HiPruneError
from scripts.efficiency.architectures import ARCHITECTURES, MODELS, TINY
from scripts.efficiency.latency.vision import PATCHES, RETENTION, side_of
from scripts.numbers import image_size, integer, number

PARTS = ("all", "vision", "kernel", "methods")
WITHOUT_MODEL = ("kernel", "methods")
DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("eager", "sdpa", "flash_attention_2")
PAPER_NEW_TOKENS, TINY_NEW_TOKENS = 500, 8
TINY_PATCHES = (256, 1024)
FEW_REPETITIONS = 10  # below that quartiles say little, and the report says so
EPILOG = """\
A real model is loaded from --checkpoint, by default from the hub; with --random-weights it is
built from its architecture and nothing is downloaded. Those named tiny are built in any case.
Exit status: 0; 1 where a setting ran out of memory; 2 for an argument that is not accepted; 130
for an interrupted run, which reports what it has measured."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, defaults filled in. Ends the process with status 2 for a wrong one."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        _complete(args)
    except HiPruneError as error:
        parser.error(str(error))
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_sys.py",
        description="Latency and memory of a model, unpruned and pruned by HiPrune.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    positive, not_negative = _checked(integer, 1), _checked(integer, 0)
    size = _checked(image_size, 28, 16384)
    add("--model", choices=MODELS, help="needed but for --part kernel and methods")
    add("--part", choices=PARTS, default="all", help="default: all, the whole model")
    add(
        "--retention",
        type=_checked(_retention),
        nargs="+",
        metavar="N'",
        help="default: the paper's",
    )
    add("--image", type=Path, metavar="FILE", help="default: a picture made from --seed")
    add(
        "--image-size",
        type=size,
        metavar="WxH",
        help="of the made picture, in pixels",
    )
    add("--prompt", help="the question; a checkpoint's tokenizer reads it")
    add("--new-tokens", type=positive, help="default: 500, as the paper; tiny models: 8")
    add(
        "--repetitions",
        type=positive,
        default=10,
        help="measured runs of a setting; default: 10",
    )
    add(
        "--warmup",
        type=not_negative,
        default=1,
        help="runs dropped before them; default: 1",
    )
    add(
        "--patches",
        type=_checked(_patches),
        nargs="+",
        metavar="P[:R]",
        help="Qwen's vision part: image sizes in patches, each with repetitions of its own",
    )
    add("--images", type=positive, help="LLaVA's vision part: images at once; default: 1")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", metavar="PATH_OR_HUB_ID")
    source.add_argument("--random-weights", action="store_true")
    add("--package", choices=("transformers", "llava"), help="default: the one installed")
    add("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--attention", choices=ATTENTIONS, default="sdpa", help="default: sdpa")
    add("--device", help="default: cuda where there is one, else cpu")
    add(
        "--seed",
        type=not_negative,
        default=0,
        help="of weights, picture and ids; default: 0",
    )
    add("--output", type=Path, metavar="FOLDER", help="default: a new one in logs/bench_sys")
    return parser


def _complete(args: argparse.Namespace) -> None:
    args.device = _device(args.device)
    if args.model is None and args.part not in WITHOUT_MODEL:
        raise HiPruneError(f"model=None: expected one of {', '.join(MODELS)}")
    _refuse_unused(args)
    args.dtype = args.dtype or ("bfloat16" if args.device.type == "cuda" else "float32")
    if args.part in WITHOUT_MODEL:
        return
    args.architecture = MODELS[args.model]
    args.tiny = args.model in TINY
    if args.tiny and args.checkpoint:
        raise HiPruneError(
            f"checkpoint={args.checkpoint!r} with model={args.model!r}, which is built with random "
            f"weights; with a checkpoint expected one of {', '.join(ARCHITECTURES)}"
        )
    is_qwen = args.architecture.is_qwen
    if args.image and args.image_size:
        raise HiPruneError("image-size: of a made picture; expected this or --image, not both")
    if args.retention is None:
        args.retention = list(args.architecture.retentions)
        if args.part == "vision" and args.architecture.needs_own:
            args.retention = [RETENTION]
    if len(set(args.retention)) < len(args.retention):
        raise HiPruneError(f"retention={args.retention}: expected each budget once")
    if args.new_tokens is None and args.part == "all":
        args.new_tokens = TINY_NEW_TOKENS if args.tiny else PAPER_NEW_TOKENS
    if args.image_size is None and args.image is None:
        side = 336 if args.tiny else 896 if args.architecture.needs_own else 672
        args.image_size = (side, side)
    args.images = args.images or 1
    if args.part == "vision" and is_qwen:
        patches = args.patches or [(p, None) for p in (TINY_PATCHES if args.tiny else PATCHES)]
        args.patches = [(count, own or args.repetitions) for count, own in patches]


def _refuse_unused(args: argparse.Namespace) -> None:
    """An argument that would change nothing is a slip."""
    none, vision = args.part in WITHOUT_MODEL, args.part == "vision"
    on_patches = vision and MODELS[args.model].is_qwen
    unused = {
        **dict.fromkeys(("model", "retention", "checkpoint", "package", "dtype"), none),
        **dict.fromkeys(("image", "image_size"), none or on_patches),
        **dict.fromkeys(("prompt", "new_tokens"), none or vision),
        "patches": not on_patches,
        "images": not vision or MODELS[args.model].family not in ("llava", "llava_next"),
    }
    for name, is_unused in unused.items():
        value = getattr(args, name)
        if is_unused and value is not None:
            raise HiPruneError(
                f"{name}={value!r} with --part {args.part} of {args.model or 'no model'}; "
                "expected none, since it changes nothing there"
            )


def _device(text: str | None) -> torch.device:
    text = text or ("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise HiPruneError(f"device={text!r}: expected cpu, cuda or cuda:N")
    if text.startswith("cuda"):
        here = torch.cuda.device_count()
        index = int(text.partition(":")[2] or 0)
        if index >= here:
            raise HiPruneError(
                f"device={text!r}: this machine and torch {torch.__version__} have {here} CUDA "
                f"GPUs; expected {'cpu' if not here else f'cpu or cuda:0 to cuda:{here - 1}'}"
            )
        return torch.device("cuda", index)
    return torch.device("cpu")


def _checked(read: Callable[..., Any], *limits: int) -> Callable[[str], Any]:
    """A reader as argparse takes it: an error of ours becomes one of the argument."""

    def of(text: str) -> Any:
        try:
            return read(text, *limits)
        except HiPruneError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return of


def _retention(text: str) -> int | float:
    value = number(text)
    if value is None:
        raise HiPruneError(f"{text!r}: expected an integer (tokens) or a share in (0, 1]")
    HiPruneConfig(retention=value)
    return value


def _patches(text: str) -> tuple[int, int | None]:
    """(patches, repetitions of their own or None)."""
    if not re.fullmatch(r"[0-9]{1,9}(:[0-9]{1,9})?", text):
        raise HiPruneError(f"{text!r}: expected PATCHES or PATCHES:REPETITIONS")
    count, _, own = text.partition(":")
    side_of(int(count))
    return int(count), integer(own, 1) if own else None
