"""Tables from the logs of the bench scripts: in the layout of the paper's, its numbers beside ours.

python scripts/make_tables.py logs --table 2 --format latex --output table2.tex
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from scripts.tables.choice import NUMBERS, all_that_ran, chosen
from scripts.tables.render import FORMATS
from scripts.tables.runs import read_tables
from scripts.tables.sheet import Sheet

AUTO = "auto"


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("logs", type=Path, help="a folder that a bench script wrote to")
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="default: markdown")
    parser.add_argument(
        "--table",
        action="append",
        choices=[*NUMBERS, AUTO],
        help="one of the paper's tables, whether it has run or not; may be given several times "
        f"(default: {AUTO}, every table that has runs, and what else has run)",
    )
    parser.add_argument(
        "--others", action="store_true", help="add the paper's rows of the methods it compares with"
    )
    parser.add_argument("--output", type=Path, help="a file to write to instead of the terminal")
    args = parser.parse_args()
    if not args.logs.is_dir():
        parser.error(f"logs={str(args.logs)!r}: no such folder")
    if args.output and (args.output.is_dir() or not args.output.parent.is_dir()):
        parser.error(f"output={str(args.output)!r}: expected a file in a folder that exists")
    return args


def main() -> None:
    parser = argparse.ArgumentParser("make_tables.py", description=__doc__.split("\n")[0])
    args = parse(parser)
    runs = read_tables(args.logs, lambda fault: print(f"left out: {fault}", file=sys.stderr))
    wanted = dict.fromkeys(args.table or [AUTO])  # each once
    if AUTO in wanted and not runs:
        parser.error(f"logs={str(args.logs)!r}: holds no finished run of a bench script")
    sheets: list[Sheet] = []
    for name in wanted:
        found = all_that_ran(runs, args.others) if name == AUTO else chosen(name, runs, args.others)
        sheets += [sheet for sheet in found if sheet not in sheets]
    text = FORMATS[args.format](sheets)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    else:
        show(text)


def show(text: str) -> None:
    """Print to a reader that may stop early, as ``head`` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What could not be written is tried once more at exit: there it shall find an open file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
