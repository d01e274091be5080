"""bench_sys.py's command line: defaults, and what is refused before anything is measured."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from forking_python import command, serving_here

from scripts.efficiency.architectures import MODELS
from scripts.efficiency.latency import session
from scripts.efficiency.latency.__main__ import main
from scripts.efficiency.latency.cli import parse

ROOT = Path(__file__).resolve().parents[1]
HAS_LLAVA = find_spec("llava") is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model huge", "invalid choice: 'huge'"),
        ("", "model=None: expected one of llava-1.5-7b"),
        ("--model tiny --retention 0", "retention=0: expected an int of at least 1"),
        ("--model tiny --retention 1.5", "retention=1.5: expected"),
        ("--model tiny --retention some", "'some': expected an integer (tokens) or a share"),
        ("--model tiny --retention 9 9", "expected each budget once"),
        ("--model tiny --repetitions 0", "'0': expected an integer of at least 1"),
        ("--model tiny --new-tokens -1", "--new-tokens: "),
        ("--model tiny --warmup x", "'x': expected an integer of at least 0"),
        (
            "--model tiny --image-size 20x20",
            "in pixels, each an integer from 28",
        ),
        ("--model tiny --image a.png --image-size 56x56", "expected this or --image, not both"),
        ("--model tiny --device tpu", "device='tpu': expected cpu, cuda or cuda:N"),
        ("--model tiny --device cuda:77", "device='cuda:77': this machine"),
        ("--model tiny --dtype int8", "invalid choice: 'int8'"),
        ("--model tiny --checkpoint x", "with a checkpoint expected one of llava-1.5-7b"),
        ("--model llava-1.5-7b --checkpoint x --random-weights", "not allowed with argument"),
        ("--model tiny --patches 64", "patches=[(64, None)] with --part all of tiny"),
        ("--model tiny-qwen --part vision --patches 63", "expected the square of an even"),
        ("--model tiny-qwen --part vision --patches 64:0", "expected an integer of at least 1"),
        ("--model tiny-qwen --part vision --image a.png", "expected none"),
        ("--model tiny --part vision --new-tokens 5", "expected none"),
        ("--model tiny-internvl --part vision --images 2", "images=2 with --part vision of tiny-"),
    ],
)
def test_arguments_that_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        parse(arguments.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--part kernel --device cpu", "expected a CUDA GPU"),
        ("--model tiny --prompt hello", "prompt='hello' with random weights"),
        ("--model tiny --image /nowhere.png", "IMAGE /nowhere.png: no such file"),
        ("--model tiny --retention 145", "retention=145: expected 1 to 144"),
        ("--model llava-1.5-7b --checkpoint /nowhere-llava", "/nowhere-llava"),
        pytest.param(
            "--model tiny-qwen", "setup_qwen.sh",
            marks=pytest.mark.skipif(not HAS_LLAVA, reason="the llava package"),
        ),
        pytest.param(
            "--model tiny --package llava", "setup_llava.sh",
            marks=pytest.mark.skipif(HAS_LLAVA, reason="transformers 5"),
        ),
        pytest.param(
            "--model tiny --package transformers", "setup_qwen.sh",
            marks=pytest.mark.skipif(not HAS_LLAVA, reason="transformers 4"),
        ),
    ],
)  # fmt: skip
def test_sessions_that_cannot_be(capsys, arguments, message):
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error and "expected" in error


def test_defaults():
    args = parse(["--model", "llava-1.5-7b", "--device", "cpu"])
    assert (args.new_tokens, args.repetitions, args.warmup) == (500, 10, 1)
    assert args.retention == [192, 128, 64] and args.dtype == "float32"
    args = parse(["--model", "qwen2.5-vl-3b", "--part", "vision", "--patches", "1024", "16384:3"])
    assert args.retention == [0.334] and args.patches == [(1024, 10), (16384, 3)]
    for name in MODELS:
        assert parse(["--model", name]).architecture.name == name


def test_runs_from_any_directory(tmp_path):
    with serving_here() as place:
        line = [*command(place), str(ROOT / "bench_sys.py"), "--help"]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--random-weights" in done.stdout


def test_default_output_is_a_folder_that_git_ignores():
    assert session.LOGS == ROOT / "logs" / "bench_sys"
