"""Where a request's CPU time goes: vision tower, language model, the rest; pruned and unpruned.

python -m scripts.serving.parts          in .venv-vllm, on a CPU; the small Qwen2.5-VL

Both engines are in this process, on one thread, and answer the same requests in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from hiprune.models.vllm_plugin import engine_name

from hiprune.machine import hardware, short_name, versions
from scripts.benchmarks import QWEN_TINY, ROOT, SMALL_ENGINE
from scripts.efficiency.latency.report import CELLS, MS, measured, ratio
from scripts.efficiency.latency.rounds import Case, Comparison, Rounds, run_rounds
from scripts.efficiency.latency.session import with_results
from scripts.serving.load import Load
from scripts.tables.paper import UNPRUNED
from scripts.tables.render import markdown

TITLES = {"tower": "tower, with scores", "language": "language model", "rest": "rest", "all": "all"}
NEW_TOKENS, SIDE = 16, 336


class Engine:
    """vLLM in this process; calls of the tower and of the language model are timed."""

    def __init__(self, checkpoint: str, retention: float | None, load: Load, count: int) -> None:
        import vllm

        more = {} if retention is None else {"hf_overrides": {"hiprune": {"retention": retention}}}
        self.llm = vllm.LLM(
            checkpoint, dtype="float32", max_model_len=2048, max_num_seqs=8, enforce_eager=True,
            enable_prefix_caching=False, mm_processor_cache_gb=0, **more,
        )  # fmt: skip
        self.load, self.count, self.round, self.spent = load, count, 0, Counter()
        self.sampling = vllm.SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
        model = self.llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
        self._time(model.visual, "forward", "tower")
        self._time(model.language_model.model, "forward", "language")
        self._time(model, "compute_logits", "language")

    def _time(self, owner: Any, name: str, part: str) -> None:
        call = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            found = call(*args, **kwargs)
            self.spent[part] += time.process_time() - start
            return found

        setattr(owner, name, timed)

    def __call__(self) -> dict[str, float]:
        """CPU seconds a request of each part; all engines get a round's pictures, each once."""
        file = self.load.requests(f"round-{self.round}", self.round * self.count, self.count)
        asked = [json.loads(line)["content"] for line in file.read_text("utf-8").splitlines()]
        messages = [[{"role": "user", "content": content}] for content in asked]
        self.round += 1
        self.spent.clear()
        start = time.process_time()
        self.llm.chat(messages, self.sampling, use_tqdm=False)
        found = {**self.spent, "all": time.process_time() - start}
        found["rest"] = found["all"] - found["tower"] - found["language"]
        return {name: seconds / self.count for name, seconds in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.serving.parts", description=__doc__)
    parser.add_argument("--checkpoint", default=str(QWEN_TINY.checkpoint), help="of Qwen2.5-VL")
    parser.add_argument("--retention", type=float, nargs="+", default=list(QWEN_TINY.retentions))
    parser.add_argument("--requests", type=int, default=32, help="a run; default: 32")
    parser.add_argument("--repetitions", type=int, default=10, help="default: 10")
    parser.add_argument("--output", type=Path, help="folder for parts.json and parts.md")
    args = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("HIPRUNE_")]:
        del os.environ[name]
    os.environ.update(SMALL_ENGINE)
    budgets = {UNPRUNED: None} | {f"{each:g} N": each for each in args.retention}
    with tempfile.TemporaryDirectory() as scratch:
        load = Load(Path(scratch), args.checkpoint, (SIDE, SIDE), NEW_TOKENS, seed=0)
        cases = [
            Case(label, Engine(args.checkpoint, each, load, args.requests), args.repetitions)
            for label, each in budgets.items()
        ]
        rounds = run_rounds(
            cases, 1, torch.device("cpu"), lambda what: print(what, file=sys.stderr)
        )
    path, machine = Path(args.checkpoint), hardware(torch.device("cpu"))
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    record = {
        "title": f"{shown} in {engine_name()}; {short_name(machine)}",
        "command": shlex.join(["python", "-m", "scripts.serving.parts", *sys.argv[1:]]),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": {"requests": args.requests, "new_tokens": NEW_TOKENS, "side": SIDE},
        "versions": versions(),
        "hardware": machine,
    }
    compared = [Comparison(label, UNPRUNED, m) for label in list(budgets)[1:] for m in TITLES]
    text = render(record, rounds, compared)
    print(text)
    if args.output:
        found = with_results(record, rounds, compared)
        args.output.mkdir(parents=True, exist_ok=True)
        file = args.output / "parts.json"
        file.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
        (args.output / "parts.md").write_text(text + "\n", encoding="utf-8")
    return 0


def render(record: dict[str, Any], rounds: Rounds, compared: list[Comparison]) -> str:
    titles = [f"{title}, CPU ms a request" for title in TITLES.values()]
    rows = [
        [row.label, str(len(row.samples)), *(measured(row, each, MS) for each in TITLES)]
        for row in rounds.rows
    ]
    ratios = [
        [row.label, *(ratio(c.summary(rounds)) for c in compared if c.case == row.label)]
        for row in rounds.rows[1:]
    ]
    note = (
        f"{CELLS} A run: {record['settings']['requests']} requests, 8 at once, in one process on "
        f"one thread, each of one picture of {SIDE} x {SIDE} pixels and {NEW_TOKENS} new tokens. "
        "Rest: pictures decoded and resized, scheduling, sampling."
    )
    return "\n\n".join(
        [
            f"### {record['title']}",
            markdown(["engine", "n", *titles], rows),
            "Over the unpruned engine's, repetition by repetition:",
            markdown(["engine", *TITLES.values()], ratios),
            note,
            f"`{record['command']}`",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
