"""Servers of vLLM side by side, pruned to each budget and unpruned, under the same requests.

    python -m scripts.serving --tiny            run by scripts/bench_serving.sh

All servers are up at once and one is asked at a time; a repetition asks each once, beginning with
another one each time, so that a ratio is of runs side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

import torch
from hiprune.models.vllm_plugin import engine_name

from hiprune import HiPruneConfig, HiPruneError
from hiprune.lmms.checkpoint import describe
from hiprune.machine import hardware, short_name, versions
from scripts.benchmarks import BENCHMARKS, QWEN_TINY, ROOT, SMALL_ENGINE
from scripts.efficiency.latency.rounds import Case, run_rounds
from scripts.efficiency.latency.session import with_results
from scripts.numbers import image_size, integer, number
from scripts.serving import report
from scripts.serving.load import Load
from scripts.serving.server import Server
from scripts.tables.paper import UNPRUNED

SCRIPT = "scripts/bench_serving.sh"
# No picture comes twice; caches that went by text alone would favour no server, and tell nothing.
ARGUMENTS = ("--no-enable-prefix-caching", "--mm-processor-cache-gb", "0")
TINY = ("--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "16", "--enforce-eager")
LOGS = ROOT / "logs" / "bench_serving"
ALONE = 4  # requests one after the other, for each as many as this of those at once


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    for sign in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal, too
        signal.signal(sign, signal.default_int_handler)
    try:
        return run(parse(argv), argv)
    except HiPruneError as error:
        print(f"{SCRIPT}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{SCRIPT}: interrupted before anything was measured", file=sys.stderr)
        return 130


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, defaults filled in; ends the process with status 2 for a wrong one."""
    parser = argparse.ArgumentParser(
        prog=SCRIPT,
        description="Requests a second, times and KV cache of vLLM's server, pruned and unpruned.",
        epilog="What follows -- goes to vLLM: -- --gpu-memory-utilization 0.2 --max-model-len 8192",
    )
    add = parser.add_argument
    add("--tiny", action="store_true", help="the small Qwen2.5-VL of assets/, on two cores")
    add("--checkpoint", help="a folder, or a name on the model hub (CKPT)")
    add(
        "--retention",
        nargs="+",
        metavar="N'",
        help=f"budgets; default: the family's three, and {UNPRUNED}, which is always first",
    )
    add("--requests", default="32", help="a run; default: 32")
    add("--concurrency", default="8", help="at once; default: 8")
    add("--new-tokens", default="16", help="of each answer; default: 16")
    add("--repetitions", default="10", help="default: 10")
    add("--warmup", default="1", help="rounds that are dropped; default: 1")
    add("--image-size", default="336x336", metavar="WxH", help="default: 336x336")
    add("--seed", default="0")
    add("--output", type=Path, help="default: a new folder in logs/bench_serving")
    split = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:split])
    args.vllm = argv[split + 1 :]
    try:
        _complete(args)
    except HiPruneError as error:
        parser.error(str(error))
    return args


def _complete(args: argparse.Namespace) -> None:
    for name, least in (
        *(("requests", 1), ("concurrency", 1), ("new_tokens", 2), ("repetitions", 1)),
        *(("warmup", 0), ("seed", 0)),
    ):
        text = getattr(args, name)
        setattr(args, name, integer(text, least, name=f"--{name.replace('_', '-')}"))
    args.image_size = image_size(args.image_size, 28, 8192, "--image-size")
    if args.tiny == bool(args.checkpoint):
        found = f"--tiny with --checkpoint {args.checkpoint!r}" if args.tiny else "neither of both"
        raise HiPruneError(f"{found}: expected --tiny, or a checkpoint (CKPT)")
    for name in os.environ:
        if name.startswith("HIPRUNE_"):
            raise HiPruneError(f"{name}={os.environ[name]!r}: expected budgets, in --retention")
    if args.tiny:
        args.checkpoint, default = str(QWEN_TINY.checkpoint), QWEN_TINY.retentions
    else:
        family = describe(args.checkpoint).family.name
        known = [each.retentions for each in BENCHMARKS.values() if each.family == family]
        default = known[0] if known else QWEN_TINY.retentions
    texts = [text for text in args.retention or map(str, default) if text != UNPRUNED]
    args.retention = [number(text) for text in texts]
    for text, value in zip(texts, args.retention, strict=True):
        if value is None:
            raise HiPruneError(f"--retention {text!r}: expected tokens, a share or {UNPRUNED}")
        HiPruneConfig(retention=value)  # raises for what is none


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Start the servers, measure, print the report and write the files; exit status.

    Raises:
        HiPruneError: a server does not start, or a request fails.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    say, folder = _progress(), args.output or LOGS / f"{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    budgets = {UNPRUNED: None} | {label_of(each): {"retention": each} for each in args.retention}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        load = Load(scratch, args.checkpoint, args.image_size, args.new_tokens, args.seed)
        servers = []
        for number_, (label, settings) in enumerate(budgets.items(), 1):
            say(f"starting server {number_} of {len(budgets)}: {label}")
            server = Server(
                label,
                args.checkpoint,
                settings,
                [*ARGUMENTS, *(TINY if args.tiny else ()), *args.vllm],
                SMALL_ENGINE if args.tiny else {},
                folder / f"server-{number_}.log",
            )
            servers.append(stack.enter_context(server))
            if device.type == "cuda":  # where one looks for free memory while it starts
                server.wait()
        _ = load.parser  # while the servers start
        for server in servers:
            server.wait()
        cases = [
            Case(server.label, _Measured(server, load, args), args.repetitions, _facts(server))
            for server in servers
        ]
        rounds = run_rounds(cases, args.warmup, device, say)
    if not any(row.samples for row in rounds.rows):
        raise KeyboardInterrupt
    record = _record(args, argv, device)
    text = report.render(record, rounds)
    print(text)
    found = with_results(record, rounds, report.comparisons(rounds))
    (folder / "result.json").write_text(json.dumps(found, indent=1, default=str) + "\n", "utf-8")
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    report.draw(record, rounds, folder / "plot.png")
    print(f"\n{folder}: result.json, report.md, plot.png, and the servers' logs")
    return 130 if rounds.interrupted else 0


def label_of(budget: float) -> str:
    return f"{budget} token{'s' * (budget > 1)}" if isinstance(budget, int) else f"{budget:g} N"


class _Measured:
    """One run of a server: requests at once, then a few one after the other."""

    def __init__(self, server: Server, load: Load, args: argparse.Namespace) -> None:
        self.server, self.load, self.args, self.round = server, load, args, 0

    def __call__(self) -> dict[str, float]:
        count, at_once = self.args.requests, self.args.concurrency
        few = max(1, count // ALONE)
        first, self.round = self.round * (count + few), self.round + 1
        file = self.load.requests(f"at-once-{self.round}", first, count)
        before, cpu = self.server.metrics(), self.server.cpu_seconds()
        found = self.load.put(self.server, file, count, at_once)
        after, cpu_after = self.server.metrics(), self.server.cpu_seconds()
        file = self.load.requests(f"alone-{self.round}", first + count, few)
        alone = self.load.put(self.server, file, few, 1)
        tokens = {
            name: (after[f"{name}_tokens_total"] - before[f"{name}_tokens_total"]) / count
            for name in ("prompt", "generation")
        }
        return {
            **found,
            "ttft_alone": alone["ttft"],
            "tpot_alone": alone["tpot"],
            "prompt_tokens": tokens["prompt"],
            # Of the last one nothing is computed any more.
            "kv_tokens": tokens["prompt"] + tokens["generation"] - 1,
            **{name: (cpu_after[name] - cpu[name]) / count for name in cpu if name in cpu_after},
        }


def _facts(server: Server) -> dict[str, object]:
    capacity, block = server.cache_tokens()
    return {"cache_tokens": capacity, "block": block}


def _progress() -> Callable[[str], None]:
    start = time.monotonic()
    return lambda what: print(
        f"[{time.monotonic() - start:6.0f} s] {what}", file=sys.stderr, flush=True
    )


def _record(args: argparse.Namespace, argv: Sequence[str], device: torch.device) -> dict:
    machine = hardware(device)
    path = Path(args.checkpoint)
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else args.checkpoint
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    return {
        "title": f"{shown} in {engine_name()}; {short_name(machine)}",
        "command": shlex.join(["bash", SCRIPT, *argv]),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": settings | {"checkpoint": str(shown)},
        "versions": versions(),
        "hardware": machine,
    }
