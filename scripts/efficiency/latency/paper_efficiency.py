"""The paper's own efficiency figures: of its machine, and so never in a table with ours."""

from __future__ import annotations

import csv

from scripts.tables.paper import PAPER

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


def paper_efficiency() -> tuple[list[str], list[list[str]]]:
    """Header and rows of the paper's unpruned and HiPrune settings."""
    header = ["tokens", "prefill ms", "decode ms", "tokens/s", "VRAM GB", "prefill speed-up"]
    rows = []
    with open(PAPER / "efficiency_llava_1_5_7b.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["method"] not in ("LLaVA-7B", "HiPrune"):
                continue
            cells = [
                f"{row[mean]} ± {row[deviation]}"
                for mean, deviation in (
                    ("prefill_ms", "prefill_sd"),
                    ("decode_ms", "decode_sd"),
                    ("throughput_tok_s", "thr_sd"),
                )
            ]
            unpruned = row["method"] != "HiPrune"
            label = f"{row['tokens']} (unpruned)" if unpruned else row["tokens"]
            speed_up = f"{float(row['prefill_speedup_derived']):.2f}x"
            rows.append([label, *cells, row["VRAM_GB"], speed_up])
    return header, rows
