"""The bench scripts of the environment .venv-qwen, as a user starts them.

Of what they do in processes of their own there is an example each; the rest runs in this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", minversion="5.17", reason="needs the environment .venv-qwen")

from bench_in_process import bench_here
from forking_python import serving_here, write_python
from random_checkpoint import make_checkpoint

ROOT = Path(__file__).resolve().parents[1]
FEW_TASKS = str(ROOT / "tests" / "few_tasks")


def bench(script, *arguments, **variables):
    env = {**os.environ, "VENV": sys.prefix, "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run(
        ["bash", str(ROOT / script), *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("script", "arguments", "budget", "tokens"),
    [
        ("bench_qwen.sh", ["--tiny"], "0.112", 16),
        ("bench_llava.sh", ["--tiny", "--hf"], "16", 16),
        # int(83 / views) a view, and there are 5 views.
        ("bench_llava_next.sh", ["--hf", "--tiny"], "83", 80),
    ],
)
def test_a_run_ends_with_a_table(tmp_path, script, arguments, budget, tokens):
    settings = {"LIMIT": "10", "OUTPUT": str(tmp_path)}
    if script == "bench_qwen.sh":  # with all its processes; what it leaves is gone on with here
        done = bench(script, *arguments, **settings, RETENTIONS=budget, PYTHONPATH=FEW_TASKS)
        assert done.returncode == 0, done.stdout
        assert f"[1/1] N' = {budget} N, hiprune_tiny: done" in done.stdout
        assert f"| {budget} " in done.stdout
    settings["RETENTIONS"] = f"unpruned {budget}"
    status, output = bench_here(script, *arguments, **settings)
    assert status == 0, output
    assert f"N' = {budget}" in output
    assert f"| {budget} " in output
    (path,) = tmp_path.glob("*/retention-*/**/*_results.json")
    record = json.loads(path.read_text())["hiprune"]
    assert str(record["retention"]) == budget and record["images"] == 10
    assert record["visual_tokens_per_image"] == tokens
    # The model is a trained one: unpruned it knows the answers.
    (path,) = tmp_path.glob("*/unpruned*/**/*_samples_*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    right = [line["filtered_resps"] == line["target"] for line in lines]
    assert len(right) == 10 and sum(right) >= 8


@pytest.mark.parametrize(
    ("script", "arguments", "name", "value"),
    [
        ("bench_qwen.sh", ["--tiny"], "HIPRUNE_QWEN_RETENTION", "0.112"),
        ("bench_llava.sh", ["--tiny", "--hf"], "HIPRUNE_RETENTION", "16"),
    ],
)
def test_one_budget_by_the_variable_of_the_family(tmp_path, script, arguments, name, value):
    settings = {"LIMIT": "2", "OUTPUT": str(tmp_path), name: value}
    status, output = bench_here(script, *arguments, **settings)
    assert status == 0, output
    assert f"[1/1] N' = {value}" in output
    (path,) = tmp_path.rglob("*_results.json")
    record = json.loads(path.read_text())["hiprune"]
    assert str(record["retention"]) == value and record["images"] == 2


def test_a_checkpoint_of_another_family(tmp_path):
    """CKPT=a tiny random Qwen3-VL, evaluated on the small models' task by `hiprune_hf`."""
    checkpoint = make_checkpoint(tmp_path / "qwen3-vl-random", "qwen3_vl")
    status, output = bench_here(
        "bench_qwen.sh",
        CKPT=str(checkpoint),
        TASKS="hiprune_tiny",
        LIMIT="5",
        RETENTIONS="0.25",
        OUTPUT=str(tmp_path / "out"),
    )
    assert status == 0, output
    (path,) = (tmp_path / "out").rglob("*_results.json")
    record = json.loads(path.read_text())["hiprune"]
    assert (record["family"], record["checkpoint"]) == ("qwen3_vl", str(checkpoint))
    assert (record["images"], record["object_layer"]) == (5, 6)  # l of 12
    # 336 x 336 pixels become 320 x 320, 10 x 10 tokens.
    assert record["visual_tokens_per_image"] == 25


@pytest.mark.parametrize("value", ["", "abc", "0", "1.5", "nan", "64"])
def test_a_bad_share_is_named(tmp_path, value):
    settings = {"HIPRUNE_QWEN_RETENTION": value, "OUTPUT": str(tmp_path)}
    if value == "":  # which a shell may lose
        with serving_here() as place:
            write_python(tmp_path / "venv" / "bin" / "python", place)
            (tmp_path / "venv" / "hiprune-setup-complete").touch()
            done = bench("bench_qwen.sh", "--tiny", **settings, VENV=str(tmp_path / "venv"))
        status, output = done.returncode, done.stdout
    else:
        status, output = bench_here("bench_qwen.sh", "--tiny", **settings)
    assert status == 2
    assert f"HIPRUNE_QWEN_RETENTION={value!r}: expected a number in (0, 1]" in output


def test_help_and_unknown_arguments():
    for script, flag in (("bench_qwen.sh", "--help"), ("setup_qwen.sh", "--help")):
        done = bench(script, flag)
        assert done.returncode == 0 and "usage:" in done.stdout
    assert "HIPRUNE_QWEN_RETENTION" in bench("bench_qwen.sh", "--help").stdout
    done = bench("bench_qwen.sh", "--hf")
    assert done.returncode == 2 and "unknown argument '--hf'" in done.stdout


@pytest.mark.parametrize("version", ["5.16.0", "4.57.6", "6.0.0", "latest"])
def test_a_version_of_transformers_that_the_adapters_do_not_know(tmp_path, version):
    done = bench("setup_qwen.sh", TRANSFORMERS=version, VENV=str(tmp_path / "venv"))
    assert done.returncode == 2
    assert f"TRANSFORMERS='{version}': expected 5.17.0 to 5.x" in done.stdout
    assert not (tmp_path / "venv").exists()
