"""One picture, and which of its visual tokens HiPrune keeps and why.

    python scripts/show_tokens.py photo.jpg --model tiny
    python scripts/show_tokens.py photo.jpg --model llava-hf/llava-1.5-7b-hf --retention 192

draws the image, the two attention maps that the tokens are chosen by, and the chosen tokens with
their counts. The tiny models lie in this repository and need no network; others are a folder or a
name on the model hub, in transformers' format. For those, Qwen2.5-VL has lmms-eval's limits of an
image, 256 to 2048 tokens. Needs transformers 5.17 or newer (setup_qwen.sh).
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiprune import HiPruneConfig, HiPruneError
from hiprune.images import open_image
from scripts.show.checkpoints import ALIASES, TINY, Checkpoint, find_checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def main(arguments: list[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        out = show(args)
    except HiPruneError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(f"wrote {out}")


def show(args: argparse.Namespace) -> Path:
    """Draw the figure of one image; what is checked without a model is checked first."""
    image = open_image(args.image)
    out = args.out or Path(f"{args.image.stem}-tokens.png")
    if not out.parent.is_dir():
        raise HiPruneError(f"--out {out}: no folder {out.parent}; expected one that is there")
    checkpoint = find_checkpoint(args.model)
    config = settings(args, checkpoint)
    model, processor = checkpoint.load(args.device)
    figure, line = draw(model, processor, image, config, pad=not args.crop)
    try:
        figure.savefig(out, dpi=args.dpi)
    except (OSError, ValueError) as error:
        raise HiPruneError(f"--out {out}: {error}; expected .png, .pdf or .svg") from error
    print(line)
    return out


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
        environ.setdefault(family.retention_variable, str(checkpoint.tiny.retentions[0]))
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


def draw(
    model: Any, image_processor: Any, image: Image, config: HiPruneConfig, pad: bool = True
) -> tuple[Figure, str]:
    """The figure of an image, and what it shows in a line: the patch runs, and is taken off."""
    from hiprune.models.pictures import picture

    from hiprune import prune
    from hiprune.figures import counts, tokens_figure
    from hiprune.figures.maps import received_attention_maps

    made = picture(model, image_processor, image, pad=pad)
    made = replace(made, pixels=made.pixels.to(model.device, model.dtype))
    with prune(model, config) as pruned:
        pruned.encode_images(made.pixels, made.sizes)
        selection, config = pruned.selections[0], pruned.config
    maps = received_attention_maps(made.tower, made.views, **made.tower_inputs)
    maps = made.token_maps(maps)
    kept, total = int(selection.keep.sum()), selection.keep.numel()
    found = counts(selection)
    line = (
        f"{kept} of {total} tokens kept: anchors by layer {config.object_layer}: "
        f"{found['anchor']}, their buffers: {found['buffer']}, registers by layer "
        f"{made.output_layer}: {found['register']}; dropped: {found['dropped']}; "
        f"alpha {config.alpha}"
    )
    title = f"HiPrune: retention {config.retention}, alpha {config.alpha}, object layer "
    figure = tokens_figure(
        image, maps, selection, made.grids, config.object_layer, made.output_layer,
        title + f"{config.object_layer}",
    )  # fmt: skip
    return figure, line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="show_tokens.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a picture that Pillow reads")
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
    parser.add_argument(
        "--crop",
        action="store_true",
        help="LLaVA-1.5: crop the centre instead of padding to a square",
    )
    parser.add_argument("--out", type=Path, help="file to write (default: STEM-tokens.png, here)")
    parser.add_argument("--dpi", type=int, default=120, help="dots per inch (default: 120)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
