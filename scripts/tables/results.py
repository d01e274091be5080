"""Results files of finished runs: read, checked before anything relies on them, and kept.

    python -m scripts.tables.results logs/llava-v1.5-tiny_* results/tiny/llava-1.5

keeps what the runs of a checkpoint found, small enough for a repository: it copies the tables and
pictures, and of every run the scores, settings, versions and machine, a line a run in runs.jsonl,
without the samples. `python -m scripts.tables results/tiny` reads it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from hiprune import HiPruneError
from scripts.benchmarks import ROOT

KEPT = "runs.jsonl"  # what keep makes of many
FILES = ("table.md", "methods.md", "methods.png", "ablation.md", "ablation.png")  # kept, too
UNFINISHED = (".running", ".failed", ".old")  # ends of the names of folders that do not count


def read_results(logs: Path, tell: Callable[[str], None] = lambda fault: None) -> list[dict]:
    """What every finished run under ``logs`` says of itself, the oldest first.

    Runs are lmms-eval's results files, or lines of the file that :func:`keep` makes of them.

    Args:
        tell: called with what is wrong with each file that is left out.
    """
    results = []
    for path in results_files(logs):
        if any(part.endswith(UNFINISHED) for part in path.relative_to(logs).parts):
            continue
        try:
            results.append(read_result(path))
        except HiPruneError as error:
            tell(str(error))
    for path in sorted(logs.rglob(KEPT)):
        lines = path.read_bytes().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                results.append(_checked(line, f"{path}, line {number}"))
            except HiPruneError as error:
                tell(str(error))
    return sorted(results, key=lambda result: result["date"])


def results_files(folder: Path) -> list[Path]:
    """lmms-eval's results files, DATE_TIME_results.json; not a task's own ``submissions``, where
    MMBench writes files of such names."""
    return sorted(folder.rglob("[0-9]*_results.json"))


def read_result(path: Path) -> dict:
    """One results file of lmms-eval.

    Raises:
        HiPruneError: it cannot be read, is not whole, or is of no model of ours.
    """
    try:
        return _checked(path.read_bytes(), str(path))
    except OSError as error:
        raise HiPruneError(f"{path}: {error.strerror}; expected a results file") from error


def fault_of(folder: Path, task: str) -> str | None:
    """Why a run's folder holds no results of its task that can be used; None where it does."""
    paths = results_files(folder)
    if not paths:
        return f"{folder}: no results file"
    for path in paths:
        try:
            if task not in read_result(path)["results"]:
                return f"{path}: results of {task} are missing"
        except HiPruneError as error:
            return str(error)
    return None


def _checked(text: bytes, place: str) -> dict:
    try:
        result = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise HiPruneError(f"{place}: no UTF-8 text ({error.reason})") from error
    except json.JSONDecodeError as error:
        what = "empty" if not text.strip() else f"not whole JSON ({error})"
        raise HiPruneError(f"{place}: {what}") from error
    for keys, kind in EXPECTED.items():
        value, name = result, ""
        for key in keys:
            name += f".{key}" if name else key
            if not isinstance(value, dict) or key not in value:
                raise HiPruneError(f"{place}: no {name!r} in it; expected a bench script's run")
            value = value[key]
        if not isinstance(value, kind):
            raise HiPruneError(f"{place}: {name}={value!r}: expected {_named(kind)}")
    if not all(isinstance(metrics, dict) for metrics in result["results"].values()):
        raise HiPruneError(f"{place}: results of a task are no object of metrics")
    return result


_MAYBE = (int, float, type(None))
# What the tables read of a run, and what it has to be.
EXPECTED: dict[tuple[str, ...], type | tuple[type, ...]] = {
    ("results",): dict,
    ("date",): str,
    ("config", "limit"): _MAYBE,
    ("hiprune", "checkpoint"): str,
    ("hiprune", "pruned"): bool,
    ("hiprune", "retention"): _MAYBE,
    ("hiprune", "alpha"): _MAYBE,
    ("hiprune", "object_layer"): _MAYBE,
    ("hiprune", "images"): int,
    ("hiprune", "visual_tokens_per_image"): _MAYBE,
}


def _named(kind: type | tuple[type, ...]) -> str:
    types = kind if isinstance(kind, tuple) else (kind,)
    names = {dict: "an object", str: "text", bool: "true or false", type(None): "null"}
    return " or ".join(dict.fromkeys(names.get(one, "a number") for one in types))


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
