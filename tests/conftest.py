"""Tiny checkpoints, made once a test run, and small helpers that several tests share."""

from __future__ import annotations

import gc
import os
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

# Models this small lose more to threads that wait for each other than they gain, and a process a
# core keeps the cores busy. Read when torch is first imported, here and by what the tests start.
os.environ["OMP_NUM_THREADS"] = "1"

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# What both environments have alike (the scripts' own text and numbers, lmms-eval's task files,
# what needs torch or Triton alone, of one version in both locks) is tested in one of them.
LLAVA_ALONE = (
    "ablation",
    "analysis",
    "bench",
    "bench_ends",
    "bench_engine",
    "bench_run",
    "bench_settings",
    "bench_tables",
    "keep_results",
    "launcher",
    "llava_eval",
    "llava_eval_files",
    "make_tables",
    "method_settings",
    "methods",
    "methods_script",
    "prompt",
    "run_identity",
    "scores",
    "serving_bench",
    "table_compare",
    "table_formats",
    "table_layouts",
    "table_runs",
    "tables",
    "task_registry",
)
QWEN_ALONE = ("demo", "demo_browser", "docs", "scores_triton")
_elsewhere = LLAVA_ALONE if find_spec("llava") is None else QWEN_ALONE
collect_ignore = [f"test_{name}.py" for name in _elsewhere]
# vLLM's environment runs what is about vLLM, which the others do not have.
_tests = {path.name for path in Path(__file__).parent.glob("test_*.py")}
_of_vllm = {name for name in _tests if name.startswith("test_vllm")}
if find_spec("vllm") is None:
    collect_ignore += sorted(_of_vllm)
else:
    collect_ignore = sorted(_tests - _of_vllm)


# Five seconds and more each, the longest first, and those that wait for other processes while all
# are at work: begun first, so that no core waits at the end.
LONG = (
    "real_use_generate",
    "standin",
    "notebooks",
    "demo_browser",
    "bench_qwen",
    "llava",
    "bench",
    "real_use_offload",
    "qwen",
    "bench_sys",
    "show_tokens",
    "demo",
    "real_use_training",
    "llava_eval",
    "llava_hf",
    "scores_triton",
    "package",
    "train_tiny",
    "bench_engine",
    "bench_run",
    "bench_ends",
    "convert",
    "qwen3_vl",
    "flops",
    "real_use_threads",
    "real_use_prompts",
    "clip_tower",
    "lmms",
    "environment",
    "figures",
    "lmms_hf",
    "methods_matrix",
    "real_use_wrappers",
    "docs",
    "real_use_copies",
    "flops_cli",
)


def pytest_sessionstart(session):
    if session.config.getoption("dist", "no") != "no":  # xdist's own process, which runs no test
        gc.enable()
        return
    import torch

    if not torch.cuda.is_available():
        # The GPU kernel runs in Triton's interpreter, which asks when anybody first imports it.
        os.environ["TRITON_INTERPRET"] = "1"
    # transformers 4.37 asks for each picture, several times, and each time the file is parsed.
    version, pillow = metadata.version, metadata.version("Pillow")
    metadata.version = lambda name: pillow if name == "Pillow" else version(name)


def pytest_collection_modifyitems(items):
    """Files in LONG first; the order within a file stays, which its shared fixtures need."""
    place = {f"test_{name}": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


_imported = 0
gc.disable()  # until the tests have been collected


def pytest_collection_finish():
    gc.set_threshold(50_000, 20, 100)
    gc.enable()
    _keep_imported()


def pytest_runtest_teardown():
    _keep_imported()


def _keep_imported():
    """What is imported by now stays: to look for garbage in it costs a tenth of the tests' time."""
    global _imported
    if len(sys.modules) != _imported:
        _imported = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_sessionfinish():
    """What is left goes with the process: pytest would look through all of it, several times."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    if find_spec("vllm") is None:
        terminalreporter.write_line("no vLLM here: test_vllm_*.py left out (ONLY=vllm runs them)")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    """A HIPRUNE_* variable of the caller's shell must not change what the tests see."""
    for name in [name for name in os.environ if name.startswith("HIPRUNE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def one_thread():
    """Models this small lose more to threads that wait for each other than they gain."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory) -> Path:
    """A LLaVA-1.5 checkpoint with 6 x 6 patches and 6 encoder layers (output layer 5)."""
    from random_checkpoint import make_checkpoint

    return make_checkpoint(
        tmp_path_factory.mktemp("checkpoints") / "llava-v1.5-tiny", image_size=84, layers=6
    )


@pytest.fixture(scope="session")
def tiny_llava_next(tmp_path_factory) -> Path:
    """A LLaVA-NeXT checkpoint of the same size; images become 3 to 5 views."""
    from random_checkpoint import make_checkpoint

    directory = tmp_path_factory.mktemp("checkpoints") / "llava-v1.6-tiny"
    return make_checkpoint(directory, family="llava_next", image_size=84, layers=6)
