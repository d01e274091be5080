"""The report on the terminal: Markdown tables, and what their figures are and are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scripts.efficiency.latency import choices, kernel
from scripts.efficiency.latency.cli import FEW_REPETITIONS
from scripts.efficiency.latency.clock import OTHER
from scripts.efficiency.latency.parts import UNPRUNED
from scripts.efficiency.latency.rounds import (
    MEMORY_ROUNDS,
    Comparison,
    Rounds,
    Row,
    Summary,
    summarise,
    values_of,
)
from scripts.efficiency.latency.spans import PARTS, PREFILL, PROJECTOR, SCORING, TOWER
from scripts.tables.paper import METHOD, efficiency_rows
from scripts.tables.render import markdown

MISSING = "-"
MS, MB = 1e3, 1e-6  # of seconds, of bytes
MODEL = "llava-1.5-7b"
SETTING = (
    "arXiv:2508.00553v3, Table 5: LLaVA-1.5-7B on one A100-PCIE 40 GB, bfloat16, FlashAttention-2, "
    "500 new tokens, 1 warm-up and 10 runs, mean ± standard deviation"
)
CORRESPONDENCE = (
    "Which of the figures above the paper's Table 5 has: its prefill is the language model's "
    "forward alone (our LLM prefill), without vision tower, selection and projector, which our "
    "time to first token holds; its decode time is our decode per token, its throughput our tokens "
    "per second, its VRAM our peak memory."
)
TITLES = {
    TOWER: "vision tower",
    SCORING: "scoring and selection",
    PROJECTOR: "projector",
    PREFILL: "LLM prefill",
    OTHER: "other",
    "ttft": "time to first token",
    "decode": "decode per token",
    "time": "time",
    "extra_memory": "extra peak memory",
}
CELLS = "Cells: median [lower quartile, upper quartile] of n runs."
MEMORY = (
    f"Memory is of up to {MEMORY_ROUNDS} runs of its own; MB are 10^6 bytes; extra is the peak "
    "over what was held before the run."
)


def number(value: float) -> str:
    """Three significant digits or more; without an exponent, or decimals of a whole number."""
    size = abs(value)
    if size >= 1000 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.3g}" if size >= 1 else f"{value:.3f}"


def spread(
    found: Summary | None, scale: float = 1.0, write: Callable[[float], str] = number
) -> str:
    """median [lower quartile, upper quartile]; the median alone where all are the same."""
    if found is None:
        return MISSING
    median, low, high = (write(scale * x) for x in (found.median, found.q1, found.q3))
    return median if found.q1 == found.q3 else f"{median} [{low}, {high}]"


def ratio(found: Summary | None) -> str:
    return spread(found, write="{:.3f}".format)


def measured(row: Row, metric: str, scale: float = 1.0) -> str:
    return spread(summarise(values_of(row.of(metric), metric)), scale)


def paper_efficiency() -> tuple[list[str], list[list[str]]]:
    """Header and rows of the paper's unpruned and HiPrune settings."""
    header = ["tokens", "prefill ms", "decode ms", "tokens/s", "VRAM GB", "prefill speed-up"]
    rows = []
    for row in efficiency_rows():
        cells = [
            f"{row[mean]} ± {row[deviation]}"
            for mean, deviation in (
                ("prefill_ms", "prefill_sd"),
                ("decode_ms", "decode_sd"),
                ("throughput_tok_s", "thr_sd"),
            )
        ]
        label = row["tokens"] if row["method"] == METHOD else f"{row['tokens']} (unpruned)"
        speed_up = f"{float(row['prefill_speedup_derived']):.2f}x"
        rows.append([label, *cells, row["VRAM_GB"], speed_up])
    return header, rows


def render(record: dict[str, Any], rounds: Rounds, comparisons: Sequence[Comparison]) -> str:
    """The whole report; ``record`` is what ``make_record`` gives."""
    part = record["settings"]["part"]
    blocks = [f"### {record['title']}"]
    if rounds.interrupted:
        blocks.append("**Interrupted: what was measured until then.**")
    if part == "all":
        blocks += _parts(rounds)
    else:
        blocks += [_calls(rounds), *([_compared(rounds, comparisons)] if comparisons else [])]
    blocks.append(_notes(record["settings"], rounds))
    if part == "all" and record["settings"]["model"] == MODEL:
        blocks += [CORRESPONDENCE, f"**The paper's figures, on the paper's machine** ({SETTING}):"]
        blocks.append(markdown(*paper_efficiency()))
    return "\n\n".join(blocks)


def _parts(rounds: Rounds) -> list[str]:
    timed = (*PARTS, OTHER, "ttft")
    header = ["setting", "visual tokens", "n", *(f"{TITLES[metric]}, ms" for metric in timed)]
    first = [
        [
            *_head(row),
            *(measured(row, metric, MS) for metric in timed),
        ]
        for row in rounds.rows
    ]
    columns = {
        "decode per token, ms": ("decode", MS),
        "tokens/s": ("tokens_per_second", 1.0),
        "peak memory, MB": ("peak_memory", MB),
        "extra memory, MB": ("extra_memory", MB),
        "KV tokens": ("kv_tokens", 1.0),
        "KV cache, MB": ("kv_bytes", MB),
    }
    second = [
        [*_head(row), *(measured(row, *column) for column in columns.values())]
        for row in rounds.rows
    ]
    compared = (TOWER, PREFILL, "ttft", "decode", "peak_memory", "kv_bytes")
    titles = {**TITLES, "peak_memory": "peak memory", "kv_bytes": "KV cache"}
    ratios = [
        [
            row.label,
            *(ratio(Comparison(row.label, UNPRUNED, m).summary(rounds)) for m in compared),
        ]
        for row in rounds.rows
        if row.label != UNPRUNED
    ]
    return [
        "Time to first token, and the parts that it consists of:",
        markdown(header, first),
        "Decoding and memory:",
        markdown(["setting", "visual tokens", "n", *columns], second),
        "Over the unpruned model's, repetition by repetition (below 1: less than unpruned):",
        markdown(["setting", *(titles[metric] for metric in compared)], ratios),
    ]


def _head(row: Row) -> list[str]:
    if row.error is not None and not row.samples:
        return [f"{row.label}: {row.error}", MISSING, "0"]
    label = row.label if row.error is None else f"{row.label}: {row.error} in a later run"
    tokens = MISSING
    if row.samples:
        tokens = f"{row.samples[-1]['kv_tokens'] - row.facts['text_tokens']:.0f}"
    return [label, tokens, str(len(row.samples))]


def _calls(rounds: Rounds) -> str:
    columns = {
        "tokens": ("tokens", 1.0),
        "time, ms": ("time", MS),
        "peak memory, MB": ("peak_memory", MB),
        "extra memory, MB": ("extra_memory", MB),
    }
    shown = [
        title
        for title, (metric, _) in columns.items()
        if metric == "time" or any(row.of(metric) for row in rounds.rows)
    ]
    rows = [
        [
            row.label if row.error is None else f"{row.label}: {row.error}",
            str(len(row.samples)),
            *(measured(row, *columns[title]) for title in shown),
        ]
        for row in rounds.rows
    ]
    return markdown(["variant", "n", *shown], rows)


def _compared(rounds: Rounds, comparisons: Sequence[Comparison]) -> str:
    header = ["variant", "over", "of", "ratio", "n", "target", ""]
    rows = []
    for comparison in comparisons:
        verdict = comparison.verdict(rounds)
        target = MISSING if comparison.target is None else f"at most {comparison.target:.2f}"
        rows.append(
            [
                comparison.case,
                comparison.base,
                TITLES[comparison.metric],
                ratio(comparison.summary(rounds)),
                str(len(comparison.ratios(rounds))),
                target,
                "" if verdict is None else f"target {verdict}",
            ]
        )
    return markdown(header, rows)


def _notes(settings: dict[str, Any], rounds: Rounds) -> str:
    part = settings["part"]
    notes = [CELLS]
    if any(0 < len(row.samples) < FEW_REPETITIONS for row in rounds.rows):
        notes.append(
            f"n is below {FEW_REPETITIONS} in places: there the quartiles say little about the "
            "spread."
        )
    if part == "kernel":
        return " ".join([*notes, kernel.NOTE])
    if part == "methods":
        return " ".join([*notes, choices.NOTE])
    notes.append(MEMORY)
    if not any(row.of("peak_memory") for row in rounds.rows):
        notes.append("Peak memory: not available on this system.")
    if part == "all":
        notes.append(
            "Time to first token and decoding are of runs without instruments: from pixel "
            "values and ids on the device, through generate, to the first token's id on the host, "
            "vision tower and selection included. The parts are of separate runs of one token; "
            "each excludes what lies within it, so that they and `other` add up to such a run. "
            "Tokens per second counts all new tokens over the whole of generate."
        )
    if settings.get("package") == "llava":
        notes.append(
            "The attention named above is the language model's: the `llava` package's own vision "
            "tower has eager attention alone."
        )
    return " ".join(notes)
