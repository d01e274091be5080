"""Pictures, and which of their visual tokens HiPrune keeps and why.

    hiprune show photo.jpg --model tiny
    hiprune show photo.jpg --model llava-hf/llava-1.5-7b-hf --retention 192
    hiprune show photos/ --question "What is on the table?" --out figures/

draws the image, the two attention maps that the tokens are chosen by, and the chosen tokens with
their counts; asked a question, also what the model answers with all tokens and with the kept ones.
Of a folder every picture is drawn; what is none is skipped with a line. The tiny models lie in the
repository and need no network; others are a folder or a name on the model hub, in transformers'
format. For those, Qwen2.5-VL has lmms-eval's limits of an image, 256 to 2048 tokens. Needs
transformers 5.17 or newer and the extra `figures`.

exit status: 0 if every picture was drawn, 1 if some were skipped, 2 if none could be.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.images import open_image
from hiprune.show.checkpoints import ALIASES, TINY, Checkpoint, find_checkpoint
from hiprune.show.drawing import draw

OURS = "-tokens"  # the end of what this program writes


def main(arguments: Sequence[str] | None = None, program: str = "hiprune show") -> int:
    """Returns the exit status; wrong arguments end in a SystemExit of 2."""
    parser = _parser(program)
    args = parser.parse_args(arguments)
    try:
        return show(args)
    except HiPruneError as error:
        parser.exit(2, f"{program}: error: {error}\n")


def show(args: argparse.Namespace) -> int:
    """Draw the figures; what is checked without a model is checked first.

    Raises:
        HiPruneError: what concerns all pictures, or the only one.
    """
    _check_packages()
    several = len(args.image) > 1 or os.path.isdir(args.image[0])
    files = list(_files(args.image))
    first = None if several else open_image(files[0])
    _check_out(args.out, several)
    checkpoint = find_checkpoint(args.model)
    config = settings(args, checkpoint)
    loaded, drawn, names = None, 0, set()
    for file in files:
        try:
            image = first or open_image(file)
            loaded = loaded or checkpoint.load_whole(args.device)
            figure, lines = draw(*loaded, image, config, not args.crop, args.question)
        except HiPruneError as error:
            message = str(error)
            if message.startswith("image of "):  # the model's processor refuses it
                message = f"IMAGE {file}: {message}"
            if not several or not message.startswith("IMAGE "):
                raise HiPruneError(message) from error
            print(f"skipped: {message}", file=sys.stderr)
            continue
        out = _out(args.out, file, names)
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.filterwarnings("always", "Glyph .* missing")
                figure.savefig(out, dpi=args.dpi)
        except (OSError, ValueError) as error:
            raise HiPruneError(f"--out {out}: {error}; expected .png, .pdf or .svg") from error
        drawn += 1
        for line in lines:
            print(f"{file}: {line}" if several else line)
        print(f"wrote {out}", flush=True)
        if told:
            print(f"{out}: no font here has all letters of the texts above", file=sys.stderr)
    if not drawn:
        raise HiPruneError(f"IMAGE {', '.join(map(str, args.image))}: no picture; expected some")
    return 0 if drawn == len(files) else 1


def settings(args: argparse.Namespace, checkpoint: Checkpoint) -> HiPruneConfig:
    """The options; else HIPRUNE_* variables; else the family's defaults, of this model's size.

    Raises:
        HiPruneError: a value that the family does not accept.
    """
    family, size = checkpoint.description.family, checkpoint.description
    options = {
        "--retention": (family.retention_variable, args.retention),
        "--alpha": ("HIPRUNE_ALPHA", args.alpha),
        "--object-layer": ("HIPRUNE_OBJECT_LAYER", args.object_layer),
    }
    environ = dict(os.environ)
    if checkpoint.tiny:  # a third of each, of LLaVA-NeXT too
        environ.setdefault(family.retention_variable, checkpoint.tiny.retention)
    environ.update({name: value for name, value in options.values() if value is not None})
    try:
        config = HiPruneConfig.from_env(family.name, environ, size.layers, size.tokens)
    except HiPruneError as error:
        message = str(error)
        for option, (name, value) in options.items():
            if value is not None:
                message = message.replace(f"{name}=", f"{option} ")
        raise HiPruneError(message) from error
    if config.method != "hiprune" or config.uses_cls:
        raise HiPruneError(
            f"HIPRUNE_METHOD={config.method!r}, HIPRUNE_SCORE={config.score!r}: expected "
            "'hiprune' and 'global', whose choice the attention maps explain"
        )
    return config


def _check_packages() -> None:
    for name, extra in (("PIL", "figures"), ("matplotlib", "figures"), ("transformers",) * 2):
        if find_spec(name) is None:
            raise HiPruneError(
                f"{name}: not installed; expected what `pip install 'hiprune[{extra}]'` brings"
            )


def _files(given: Sequence[Path]) -> Iterator[Path]:
    """Those named, and of a folder all within but hidden ones and what this program wrote."""
    for path in given:
        if not os.path.isdir(path):
            yield path
            continue
        try:
            inside = [p for p in sorted(path.iterdir()) if not p.name.startswith(".")]
        except OSError as error:
            raise HiPruneError(f"IMAGE {path}: {error}; expected a folder to read") from error
        yield from (p for p in inside if not p.stem.endswith(OURS))


def _check_out(out: Path | None, several: bool) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    if out is None or out.is_dir():
        return
    if several:
        raise HiPruneError(f"--out {out}: no folder; expected one that is there, for a file each")
    if not out.parent.is_dir():
        raise HiPruneError(f"--out {out}: no folder {out.parent}; expected one that is there")
    known = FigureCanvasBase.get_supported_filetypes()
    if out.suffix and out.suffix[1:].lower() not in known:
        raise HiPruneError(f"--out {out}: format {out.suffix}; expected .png, .pdf or .svg")


def _out(out: Path | None, file: Path, names: set[str]) -> Path:
    """STEM-tokens.png; of two files with one stem the second has a number."""
    if out and not out.is_dir():
        return out
    number = 1
    while (name := f"{file.stem}{f'-{number}' if number > 1 else ''}{OURS}.png") in names:
        number += 1
    names.add(name)
    return (out or Path()) / name


def _parser(program: str = "hiprune show") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "image", type=Path, metavar="IMAGE", nargs="+",
        help="a picture that Pillow reads, or a folder of them",
    )  # fmt: skip
    parser.add_argument(
        "--model",
        default="tiny",
        help=f"{', '.join((*ALIASES, *TINY))} (default: tiny), a folder or a hub name",
    )
    parser.add_argument(
        "--retention",
        help="tokens to keep; of Qwen's models their share, in (0, 1]; InternVL and "
        "LLaVA-OneVision: either, a share with its point",
    )
    parser.add_argument("--alpha", help="share of anchors plus buffers, 0 to 1 (default: 0.1)")
    parser.add_argument("--object-layer", help="l, counted from 1 (default: the model's)")
    parser.add_argument("--question", help="ask it, with all tokens and with the kept ones")
    parser.add_argument(
        "--crop",
        action="store_true",
        help="LLaVA-1.5: crop the centre instead of padding to a square",
    )
    parser.add_argument(
        "--out", type=Path,
        help="file to write, or a folder for one a picture (default: STEM-tokens.png, here)",
    )  # fmt: skip
    parser.add_argument("--dpi", type=int, default=120, help="dots per inch (default: 120)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
