"""Train a tiny LLaVA-1.5, LLaVA-NeXT or Qwen2.5-VL from scratch on generated scenes.

The scenes show coloured shapes on clutter; the questions ask for existence, colour, shape, count
and position and have answers of one word. Everything follows from the seed, nothing is downloaded.
Needs transformers 5.17 or newer:

    python scripts/train_tiny.py --family llava --output .tiny/trained/llava

leaves in the folder `checkpoint/`, a model that transformers reads, with its card, and
`curve.jsonl`, training loss and accuracy on held-out scenes over the steps. A run that was
interrupted goes on with --resume, with the batches that it would have seen. LLaVA-NeXT begins with
the weights of LLaVA-1.5:

    python scripts/train_tiny.py --family llava_next --start .tiny/trained/llava --output ...
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path

import torch


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from scripts.tiny.export import export, write_card
    from scripts.tiny.loop import FAMILIES, train
    from scripts.tiny.recipe import RECIPES, Recipe

    parser = argparse.ArgumentParser(
        prog="train_tiny.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--family", choices=FAMILIES, default="llava")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, help="default: the recipe's")
    parser.add_argument("--minutes", type=float, help="stop after so many; --resume goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --output")
    parser.add_argument("--start", type=Path, help="folder of a run to take the weights of")
    parser.add_argument("--threads", type=int, help="of the CPU; default: torch's choice")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw the scenes")
    parser.add_argument("--compile", action="store_true", help="the tower's pass, by torch.compile")
    parser.add_argument("--until", type=int, metavar="STEP", help="stop there; --resume goes on")
    parser.add_argument("--measure-every", type=int, default=250, metavar="STEPS")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help=f"of the recipe: {', '.join(field.name for field in fields(Recipe))}",
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = replace(RECIPES[args.family], seed=args.seed)
    if args.steps:
        recipe = replace(recipe, steps=args.steps)
    for setting in args.set:
        name, _, value = setting.partition("=")
        if name not in {field.name for field in fields(Recipe)}:
            parser.error(f"--set {name}: no field of the recipe")
        kind = type(getattr(recipe, name))
        recipe = replace(recipe, **{name: kind(json.loads(value)) if kind is not str else value})
    trainee, done = train(
        recipe,
        args.output,
        device=args.device,
        resume=args.resume,
        start=args.start,
        minutes=args.minutes,
        until=args.until,
        measure_every=args.measure_every,
        workers=args.workers,
        compiled=args.compile,
    )
    if done:
        checkpoint = export(trainee, args.output / "checkpoint")
        words = [shlex.quote(word) for word in sys.argv[1:] if word != "--resume"]
        command = " ".join(["python scripts/train_tiny.py", *words])
        write_card(trainee, recipe, args.output, command)
        print(json.dumps({"checkpoint": str(checkpoint)}))
    else:
        print("not finished; go on with --resume")


if __name__ == "__main__":
    main()
