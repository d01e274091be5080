"""Runs of lmms-eval, resumable, and what comes of them; started by shell scripts.

    python -m scripts.bench --family FAMILY [--tiny]               bench_*.sh
    python -m scripts.bench ablation --family FAMILY [--tiny]      scripts/ablation.sh
    python -m scripts.bench methods --family FAMILY [--tiny]       scripts/methods.sh

The scripts make the environment and hand over the variables that their --help lists.
"""

from __future__ import annotations

import argparse
import sys

from scripts.bench import ablation, methods
from scripts.bench.plan import plan, print_tables
from scripts.bench.run import evaluate
from scripts.bench.settings import read_settings
from scripts.benchmarks import BENCHMARKS

# Name -> what reads its variables, plans its runs and prints what came of them.
STUDIES = {
    "budgets": (read_settings, plan, print_tables),
    "ablation": (ablation.read, ablation.runs, ablation.report),
    "methods": (methods.read, methods.runs, methods.report),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", nargs="?", choices=STUDIES, default="budgets")
    parser.add_argument("--family", choices=BENCHMARKS, required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(arguments)
    return evaluate(BENCHMARKS[args.family], args.tiny, *STUDIES[args.study])


if __name__ == "__main__":
    sys.exit(main())
