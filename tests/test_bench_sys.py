"""bench_sys.py: tiny models from end to end.

Nothing here asserts how long anything takes.
"""

from __future__ import annotations

import importlib.util
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import hiprune
from scripts.efficiency.architectures import TINY
from scripts.efficiency.latency import choices, parts, report
from scripts.efficiency.latency.build import build
from scripts.efficiency.latency.clock import CLEAR
from scripts.efficiency.latency.rounds import (
    Rounds,
    Row,
)
from scripts.efficiency.latency.subject import Request, language_model

ROOT = Path(__file__).resolve().parents[1]
HAS_LLAVA = find_spec("llava") is not None
CPU = torch.device("cpu")
# Visual tokens of the unpatched models: LLaVA-NeXT's and LLaVA-OneVision's with a newline for each
# of their 24 rows.
UNPRUNED_TOKENS = {
    "tiny": 144,
    "tiny-next": 720 + 24,
    "tiny-qwen": 144,
    "tiny-qwen2": 144,
    "tiny-qwen3": 100,
    "tiny-internvl": 10 * 16,
    "tiny-onevision": 10 * 64 + 24,
}
# At 0.334 of them, the newlines not counted; whole views' int(N' / 10).
KEPT = {"tiny-qwen": 48, "tiny-qwen2": 48, "tiny-qwen3": 33}
KEPT |= {"tiny-internvl": 50, "tiny-onevision": 210}
needs_transformers = pytest.mark.skipif(HAS_LLAVA, reason="transformers' own models are newer")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("bench_sys", ROOT / "bench_sys.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def run(main, folder: Path, *arguments: str) -> tuple[int, dict]:
    status = main([*arguments, "--output", str(folder)])
    return status, json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    "name", [name for name in TINY if not HAS_LLAVA or not TINY[name].needs_own]
)
def test_tiny_from_end_to_end(main, tmp_path, capsys, name):
    arguments = ("--model", name, "--repetitions", "2", "--new-tokens", "3", "--warmup", "0")
    budgets = TINY[name].retentions
    if name != "tiny":  # where the defaults are seen
        budgets = budgets[:1]
        arguments += ("--retention", str(budgets[0]))
    status, record = run(main, tmp_path, *arguments)
    assert status == 0 and not record["interrupted"]
    assert {"torch", "transformers", "hiprune", "python"} <= record["versions"].keys()
    assert {"cpu", "threads"} <= record["hardware"].keys()
    assert record["command"].startswith(f"python bench_sys.py --model {name} --repetitions 2")
    assert record["settings"]["weights"] == "random weights"
    assert record["settings"]["new_tokens"] == 3
    assert record["settings"]["package"] == ("llava" if HAS_LLAVA else "transformers")

    unpruned, *pruned = record["rows"]
    assert [row["retention"] for row in pruned] == list(budgets)
    text = record["settings"]["text_tokens"]
    for row in record["rows"]:
        assert row["error"] is None and row["n"] == len(row["samples"]) == 2
        for sample in row["samples"]:
            assert (sample["scoring"] > 0) == (row is not unpruned)
            times = ("tower", "projector", "prefill", "ttft", "decode", "tokens_per_second")
            assert all(sample[metric] > 0 for metric in times)
        # Keys and values of every layer, in float32.
        config = TINY[name].text
        size = 2 * config.layers * config.kv_heads * config.head_width * 4
        assert row["summary"]["kv_bytes"]["median"] == size * row["samples"][0]["kv_tokens"]
        for metric, found in row["summary"].items():
            assert found["q1"] <= found["median"] <= found["q3"], metric
    kv_tokens = [row["samples"][0]["kv_tokens"] for row in record["rows"]]
    assert kv_tokens[0] == text + UNPRUNED_TOKENS[name]
    expected = [KEPT[name]] if name in KEPT else list(budgets)
    assert kv_tokens[1:] == [text + kept for kept in expected]
    assert [row["kept_tokens"] for row in pruned] == expected

    ratios = {(r["case"], r["metric"]): r for r in record["ratios"]}
    found = ratios[pruned[0]["label"], "kv_bytes"]
    assert found["ratios"] == [kv_tokens[1] / kv_tokens[0]] * 2
    if CLEAR.exists() and "peak_memory" in unpruned["summary"]:
        assert len(unpruned["memory_samples"]) == 2
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert (tmp_path / "report.md").read_text().strip() in printed
    assert "n is below 10" in printed and "paper" not in printed


def test_out_of_memory_of_a_setting_is_a_row(main, tmp_path, monkeypatch, capsys):
    original = parts._run

    def fails_at_32(subject, inputs, config, *rest):
        if config is not None and config.retention == 32:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return original(subject, inputs, config, *rest)

    monkeypatch.setattr(parts, "_run", fails_at_32)
    arguments = ("--model", "tiny", "--repetitions", "1", "--new-tokens", "1")
    status, record = run(main, tmp_path, *arguments)
    assert status == 1
    assert [row["error"] for row in record["rows"]] == [None, None, "out of memory", None]
    assert [row["n"] for row in record["rows"]] == [1, 1, 0, 1]
    assert "32: out of memory" in capsys.readouterr().out
    assert "decode" not in record["rows"][0]["samples"][0]  # of one new token there is none


def test_interrupted_reports_what_it_has(main, tmp_path, monkeypatch, capsys):
    calls = []
    original = parts._run

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(parts, "_run", interrupted)
    arguments = ("--model", "tiny", "--warmup", "0", "--new-tokens", "1", "--retention", "48")
    status, record = run(main, tmp_path, *arguments)
    assert status == 130 and record["interrupted"]
    assert [row["n"] for row in record["rows"]] == [1, 1]
    assert "Interrupted" in capsys.readouterr().out
    assert (tmp_path / "plot.png").exists()


def test_vision_part_of_llava(main, tmp_path):
    arguments = ("--model", "tiny", "--part", "vision", "--repetitions", "1", "--warmup", "0")
    status, record = run(main, tmp_path, *arguments, "--retention", "48", "0.25")
    assert status == 0
    attention = "eager" if HAS_LLAVA else "sdpa"
    tokens = {row["label"]: row["samples"][0]["tokens"] for row in record["rows"]}
    assert tokens == {
        f"unpatched ({attention})": 144,
        "hiprune 48": 48,
        "released 48": 48,
        "hiprune 0.25": 36,
        "released 0.25": 36,
    }
    bases = {(ratio["case"], ratio["base"]) for ratio in record["ratios"]}
    assert ("hiprune 48", "released 48") in bases and len(bases) == 4
    assert all(ratio["target"] is None for ratio in record["ratios"])  # tiny has none
    assert (tmp_path / "plot.png").exists()


def test_vision_part_of_several_images(main, tmp_path):
    arguments = ("--model", "tiny", "--part", "vision", "--repetitions", "1", "--warmup", "0")
    status, record = run(main, tmp_path, *arguments, "--retention", "48", "--images", "3")
    assert status == 0 and "3 images at once" in record["title"]
    assert [row["samples"][0]["tokens"] for row in record["rows"]] == [3 * 144, 3 * 48, 3 * 48]


def test_vision_part_of_llava_next(main, tmp_path, capsys):
    arguments = ["--model", "tiny-next", "--part", "vision", "--repetitions", "1", "--warmup", "0"]
    arguments += ["--retention", "160", "--images", "2", "--output", str(tmp_path)]
    if HAS_LLAVA:
        assert main(arguments) == 2
        assert "expected LLaVA-1.5 there" in capsys.readouterr().err
        return
    assert main(arguments) == 0
    record = json.loads((tmp_path / "result.json").read_text())
    assert [row["samples"][0]["tokens"] for row in record["rows"]] == [1488, 320, 320]


@needs_transformers
@pytest.mark.parametrize(
    ("name", "arguments", "tokens"),
    [
        ("tiny-qwen2", ["--patches", "64"], [16, 5]),
        ("tiny-qwen3", ["--patches", "64"], [16, 5]),
        ("tiny-internvl", ["--image-size", "112x112"], [16, 5]),
        ("tiny-onevision", ["--image-size", "112x112"], [2 * 64 + 8, 2 * 21]),
    ],
)
def test_vision_part_of_the_other_families(main, tmp_path, name, arguments, tokens):
    arguments += ["--model", name, "--part", "vision", "--repetitions", "1", "--warmup", "0"]
    status, record = run(main, tmp_path, *arguments)
    assert status == 0  # and the released code's way of LLaVA alone
    assert [row["samples"][0]["tokens"] for row in record["rows"]] == tokens


@needs_transformers
def test_vision_part_of_qwen(main, tmp_path):
    arguments = ("--model", "tiny-qwen", "--part", "vision", "--repetitions", "2")
    status, record = run(main, tmp_path, *arguments, "--patches", "64", "256:1")
    assert status == 0
    found = {(r["patches"], r.get("retention")): r for r in record["rows"]}
    assert {key: row["n"] for key, row in found.items()} == {
        (64, None): 2, (64, 0.334): 2, (256, None): 1, (256, 0.334): 1,
    }  # fmt: skip
    assert found[256, None]["samples"][0]["tokens"] == 64
    assert found[256, 0.334]["samples"][0]["tokens"] == 21
    assert {ratio["metric"] for ratio in record["ratios"]} == {"time", "extra_memory"}


def test_the_papers_figures_stand_apart():
    sample = {"repetition": 0, "kv_tokens": 625, "ttft": 0.1}
    rounds = Rounds([Row(parts.UNPRUNED, {"text_tokens": 49}, [sample])])
    settings = {"part": "all", "model": "llava-1.5-7b"}
    text = report.render({"title": "ours", "settings": settings}, rounds, [])
    ours, _, papers = text.partition("The paper's figures, on the paper's machine")
    assert "28.56 ± 0.3" in papers and "54.31 ± 0.37" in papers and "28.56" not in ours
    settings["model"] = "llava-1.5-13b"
    assert "paper" not in report.render({"title": "ours", "settings": settings}, rounds, [])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_random_weights_keep_activations_finite(dtype):
    package = "llava" if HAS_LLAVA else "transformers"
    subject = build(Request(TINY["tiny"], package, None, CPU, dtype, "eager", seed=0))
    assert {parameter.dtype for parameter in subject.model.parameters()} == {dtype}
    embeds = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    hidden = language_model(subject)(inputs_embeds=embeds).last_hidden_state
    assert bool(hidden.isfinite().all()) and 0.1 < hidden.float().std() < 10


def test_methods_part(main, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(choices, "SHAPES", ((2, 12, 5, 4),))
    arguments = ("--part", "methods", "--device", "cpu", "--repetitions", "2", "--warmup", "0")
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    assert "2 x 12, 5 kept: cdpruner" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    labels = [row["label"] for row in result["rows"]]
    assert labels == [f"2 x 12, 5 kept: {name}" for name in hiprune.methods()]
    assert all(sample["time"] > 0 for row in result["rows"] for sample in row["samples"])
