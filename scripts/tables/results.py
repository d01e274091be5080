"""The results files that finished runs leave: read, and checked before anything relies on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hiprune import HiPruneError

KEPT = "runs.jsonl"  # what keep.py makes of many
UNFINISHED = (".running", ".failed", ".old")  # ends of the names of folders that do not count


def read_results(logs: Path, tell: Callable[[str], None] = lambda fault: None) -> list[dict]:
    """What every finished run under ``logs`` says of itself, the oldest first.

    Runs are lmms-eval's results files, or lines of the file that keep.py makes of them.

    Args:
        tell: called with what is wrong with each file that is left out.
    """
    results = []
    for path in sorted(logs.rglob("*_results.json")):
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
    paths = sorted(folder.rglob("*_results.json"))
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
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = {dict: "an object", str: "text", bool: "true or false", type(None): "null"}
    return " or ".join(dict.fromkeys(names.get(one, "a number") for one in kinds))
