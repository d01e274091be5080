"""Print the paper's score for a checkpoint, a budget and a benchmark, or "-" where it has none.

python -m scripts.llava_eval.paper_number --checkpoint CKPT --budget 192 --column TextVQA
"""

from __future__ import annotations

import argparse

from scripts.tables.paper import UNPRUNED, paper_rows


def paper_number(checkpoint: str, budget: str, column: str) -> str:
    """The printed figure; ``budget`` is a number of tokens or "unpruned"."""
    row = paper_rows(checkpoint).get(budget if budget == UNPRUNED else int(budget), {})
    return f"{row[column]:.1f}" if column in row else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--budget", required=True, help='tokens per image, or "unpruned"')
    parser.add_argument("--column", required=True, help="as in results/paper/*.csv")
    args = parser.parse_args()
    print(paper_number(args.checkpoint, args.budget, args.column))


if __name__ == "__main__":
    main()
