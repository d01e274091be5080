"""One call of bench_sys.py: build, measure, report; and its record, as JSON."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any

import torch
import transformers

from hiprune.images import open_image
from hiprune.machine import hardware, short_name, versions
from scripts.benchmarks import ROOT
from scripts.efficiency.latency import plot, report
from scripts.efficiency.latency.build import build
from scripts.efficiency.latency.choices import choice_cases
from scripts.efficiency.latency.inputs import Inputs, make_inputs, make_picture
from scripts.efficiency.latency.kernel import kernel_cases
from scripts.efficiency.latency.parts import UNPRUNED, measure_parts
from scripts.efficiency.latency.rounds import Comparison, Rounds, run_rounds, summarise, values_of
from scripts.efficiency.latency.subject import Request, Subject, choose_package, default_checkpoint
from scripts.efficiency.latency.vision import qwen_variants, view_variants

LOGS = ROOT / "logs" / "bench_sys"


def run_session(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure what the arguments ask for, print the report and write the files; exit status.

    Raises:
        hiprune.HiPruneError: what is asked for cannot be measured.
    """
    progress = _progress()
    measure = _CASES.get(args.part, _measure_model)
    rounds, comparisons, facts = measure(args, progress)
    made = make_record(args, facts, argv)
    text = report.render(made, rounds, comparisons)
    print(text)

    folder = args.output or LOGS / f"{args.model or args.part}-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    found = with_results(made, rounds, comparisons)
    (folder / "result.json").write_text(
        json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8"
    )
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    drawn = plot.draw(made, rounds, folder / "plot.png")
    print(f"\n{folder}: result.json, report.md{', plot.png' if drawn else ''}")
    if rounds.interrupted:
        return 130
    return 1 if any(row.error for row in rounds.rows) else 0


def _measure(
    cases_of: Callable, args: argparse.Namespace, progress: Callable[[str], None]
) -> tuple[Rounds, list[Comparison], dict]:
    """What needs no model."""
    cases, comparisons = cases_of(args.device, args.repetitions, args.seed)
    return run_rounds(cases, args.warmup, args.device, progress), comparisons, {}


_CASES = {"kernel": partial(_measure, kernel_cases), "methods": partial(_measure, choice_cases)}


def _measure_model(
    args: argparse.Namespace, progress: Callable[[str], None]
) -> tuple[Rounds, list[Comparison], dict]:
    architecture = args.architecture
    package = choose_package(args.package, architecture.family)
    checkpoint = args.checkpoint
    if checkpoint is None and not args.random_weights:
        checkpoint = default_checkpoint(architecture, package)
    request = Request(
        architecture,
        package,
        checkpoint,
        args.device,
        getattr(torch, args.dtype),
        args.attention,
        args.seed,
        one_layer=args.part == "vision",
    )
    image = open_image(args.image) if args.image else make_picture(args.image_size, args.seed)
    transformers.logging.set_verbosity_error()
    progress(f"building {args.model} ({checkpoint or 'random weights'})")
    subject = build(request)
    facts = {"package": package, "weights": checkpoint or "random weights"}
    if args.part == "vision":
        rounds, comparisons = _measure_vision(args, subject, image, progress)
        return rounds, comparisons, facts
    inputs = make_inputs(subject, image, args.prompt, args.seed)
    rounds = measure_parts(
        subject,
        inputs,
        args.retention,
        new_tokens=args.new_tokens,
        repetitions=args.repetitions,
        warmup=args.warmup,
        progress=progress,
    )
    comparisons = [
        Comparison(row.label, UNPRUNED, metric)
        for row in rounds.rows[1:]
        for metric in (
            "tower", "prefill", "ttft", "decode", "peak_memory", "extra_memory", "kv_bytes"
        )
    ]  # fmt: skip
    return rounds, comparisons, {**facts, **_described(inputs, image)}


def _measure_vision(
    args: argparse.Namespace, subject: Subject, image, progress: Callable[[str], None]
) -> tuple[Rounds, list[Comparison]]:
    if args.architecture.is_qwen:
        variants, comparisons = qwen_variants(
            subject, args.patches, args.retention, args.seed, targets=not args.tiny
        )
    else:
        inputs = make_inputs(subject, image, args.prompt, args.seed).times(args.images)
        variants, comparisons = view_variants(
            subject, inputs, args.retention, args.repetitions, targets=not args.tiny
        )
    cases = [variant.case(args.device) for variant in variants]
    return run_rounds(cases, args.warmup, args.device, progress), comparisons


def _described(inputs: Inputs, image) -> dict:
    return {
        "image_pixels": list(image.size),
        "pixel_values_shape": list(inputs.pixels.shape),
        "text_tokens": inputs.text_tokens,
    }


def _progress() -> Callable[[str], None]:
    start = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - start:6.0f} s] {what}", file=sys.stderr, flush=True)

    return say


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
    if args.part == "vision" and args.images > 1:
        title.append(f"{args.images} images at once")
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
