"""Keep what the runs of a checkpoint found, small enough for a repository.

    python -m scripts.tables.keep logs/llava-v1.5-tiny_* results/tiny/llava-1.5

copies the tables and pictures, and of every run the scores, settings, versions and machine, a line
a run in runs.jsonl, without the samples. `python scripts/make_tables.py results/tiny` reads it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from scripts.benchmarks import ROOT
from scripts.tables.results import KEPT, read_results

FILES = ("table.md", "methods.md", "methods.png", "ablation.md", "ablation.png")


def keep(logs: Path, target: Path) -> int:
    """Write ``target`` from the runs in ``logs``; returns how many there are.

    Raises:
        SystemExit: no finished run in ``logs``.
    """
    results = read_results(logs, lambda fault: print(f"left out: {fault}", file=sys.stderr))
    if not results:
        raise SystemExit(f"{logs}: no finished run; expected a folder that a bench script wrote")
    target.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_essence(result), sort_keys=True) + "\n" for result in results]
    (target / KEPT).write_text("".join(lines), encoding="utf-8")
    for name in FILES:
        (target / name).unlink(missing_ok=True)  # an older run's
        if (logs / name).is_file():
            shutil.copyfile(logs / name, target / name)
    return len(results)


def _essence(result: dict) -> dict:
    record = dict(result["hiprune"])
    checkpoint = Path(record["checkpoint"])
    if checkpoint.is_relative_to(ROOT):  # where the clone lies is nobody's business
        record["checkpoint"] = checkpoint.relative_to(ROOT).as_posix()
    scores = {
        task: {name: value for name, value in metrics.items() if not name.startswith("submission")}
        for task, metrics in result["results"].items()
    }
    others = {n: result[n] for n in ("group_subtasks", "higher_is_better") if n in result}
    return {
        **others,
        "date": result["date"],
        "config": {"limit": result["config"]["limit"]},
        "hiprune": record,
        "results": scores,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", type=Path, help="folder of one checkpoint's runs")
    parser.add_argument("target", type=Path, help="folder to write")
    args = parser.parse_args()
    print(f"{args.target}: {keep(args.logs, args.target)} runs")


if __name__ == "__main__":
    main()
