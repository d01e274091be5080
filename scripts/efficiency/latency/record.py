"""The record of a session, as JSON: what it takes to read its numbers, or to take them again."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hiprune.machine import hardware, short_name, versions
from scripts.efficiency.latency.comparisons import Comparison
from scripts.efficiency.latency.rounds import Rounds
from scripts.efficiency.latency.stats import summarise, values_of


def make_record(
    args: argparse.Namespace, facts: dict[str, Any], argv: Sequence[str]
) -> dict[str, Any]:
    """Title, command, settings, versions and hardware; without the measurements yet.

    Args:
        facts: what the arguments leave open ("package", "weights", "image", "text_tokens").
        argv: the command line's arguments.
    """
    machine = hardware(args.device)
    settings = {
        name: value
        for name, value in vars(args).items()
        if name not in ("architecture", "output", "checkpoint", "random_weights")
    }
    if args.part == "kernel":
        name, dtype, settings = "kernels", "bfloat16", {**settings, "dtype": "bfloat16"}
    elif args.part == "methods":
        name, dtype, settings = "choices", "float32", {**settings, "dtype": "float32"}
    else:
        name, dtype = args.model, args.dtype
    settings |= facts
    title = [name, *([facts["weights"]] if "weights" in facts else []), dtype]
    if args.part == "all":
        title.append(args.attention)
    return {
        "title": f"{', '.join(title)}; {short_name(machine)}",
        "command": shlex.join(["python", "bench_sys.py", *argv]),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": settings,
        "versions": versions(),
        "hardware": machine,
    }


def with_results(
    record: dict[str, Any], rounds: Rounds, comparisons: Sequence[Comparison]
) -> dict[str, Any]:
    """The record with every raw sample (seconds, bytes), its statistics and the ratios."""
    rows = []
    for row in rounds.rows:
        samples = (*row.samples, *row.memory)
        metrics = sorted({name for sample in samples for name in sample} - {"repetition"})
        summaries = {metric: summarise(values_of(samples, metric)) for metric in metrics}
        rows.append(
            {
                "label": row.label,
                **row.facts,
                "error": row.error,
                "n": len(row.samples),
                "summary": {name: found.as_dict() for name, found in summaries.items() if found},
                "samples": row.samples,
                "memory_samples": row.memory,
            }
        )
    return {
        **record,
        "interrupted": rounds.interrupted,
        "rows": rows,
        "ratios": [comparison.as_dict(rounds) for comparison in comparisons],
    }


def write(record: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")
