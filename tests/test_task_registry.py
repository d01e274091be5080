"""bench.registry: tasks, groups and typos are told from lmms-eval's files before anything runs."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from program import run_here

from hiprune import HiPruneError
from scripts.bench.registry import _values, read_registry
from scripts.benchmarks import BENCHMARKS

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "scripts"
DEFAULTS = sorted({task for benchmark in BENCHMARKS.values() for task in benchmark.tasks})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("task: pope\ntag: [a, 'b']", {"task": "pope", "tag": ["a", "b"]}),
        ('"task" : "pope" # a note\ngroup: g', {"task": "pope", "group": "g"}),
        ("group: g\ntask:\n  - a\n  # note\n\n  - task: b # note\n    n: 1\nx:\n- c", None),
        ("tag:\n- a\n  - b\nother:\n  task: no", {"tag": ["a", "b"]}),
        ("# task: no\nother: 1", {}),
    ],
)
def test_the_keys_of_a_file(text, found):
    found = {"group": "g", "task": ["a", "b"]} if found is None else found
    assert _values(text.splitlines()) == found


def test_the_default_tasks_are_found():
    registry = read_registry(DEFAULTS)
    assert set(DEFAULTS) <= registry.files.keys()
    assert registry.files["gqa"].name == "gqa.yaml"
    registry.check(DEFAULTS, None)
    assert registry.tasks("gqa") == ["gqa"]


def test_groups_and_tags_and_what_they_hold():
    registry = read_registry(["pope_full", "mmbench"])
    registry.check(["pope_full", "mmbench"], 3)
    assert registry.tasks("pope_full") == ["pope_adv", "pope_pop", "pope_random"]
    assert {"mmbench_en_dev", "mmbench_cn_dev"} <= set(registry.tasks("mmbench"))


def test_what_only_a_template_holds_is_left_to_lmms_evals_own_index(monkeypatch):
    class Index:  # reading all the files as it does takes ten seconds
        def __init__(self, level):
            asked.append(level)
            self.task_index = {"verl_reasoning": {"task": ["charxiv_val_reasoning"]}}

    asked = []
    monkeypatch.setitem(sys.modules, "lmms_eval.tasks", SimpleNamespace(TaskManager=Index))
    registry = read_registry(["nobody_s_task"])
    assert not asked  # no file has the name
    with pytest.raises(HiPruneError, match="'nobody_s_task': expected a task or group"):
        registry.check(["nobody_s_task"], None)
    assert read_registry(["verl_reasoning"]).tasks("verl_reasoning") == ["charxiv_val_reasoning"]
    assert asked == ["ERROR"]


def bench(tmp_path, **variables):
    """The program, as bench_llava.sh starts it: it ends before anything is loaded or written."""
    environment = {"PATH": "", "OUTPUT": str(tmp_path / "logs"), "HOME": str(tmp_path), **variables}
    done = run_here(BENCH, "bench", "--family", "llava_hf", environment=environment)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_a_name_with_a_typo_ends_it_before_the_first_run(tmp_path):
    line = bench(tmp_path, TASKS="pope gqaa")
    assert line.startswith("TASKS: 'gqaa': expected a task or group of lmms-eval (gqa")
    assert not (tmp_path / "logs").exists()


def test_an_odd_limit_of_what_comes_in_pairs(tmp_path):
    expected = "LIMIT='3': expected an even number for mme, which scores the two questions of an"
    assert bench(tmp_path, TASKS="pope mme", LIMIT="3").startswith(expected)
    registry = read_registry(["mme"])
    registry.check(["mme"], 4)
    with pytest.raises(HiPruneError, match="even number for mme"):
        registry.check(["mme"], 5)


@pytest.mark.parametrize("name", ["a file", "a, comma", "under a file"])
def test_an_output_that_cannot_be_written(tmp_path, name):
    file = tmp_path / "file"
    file.touch()
    output = {"a file": file, "a, comma": tmp_path / "a,b", "under a file": file / "logs"}[name]
    assert bench(tmp_path, TASKS="pope", OUTPUT=str(output)).startswith(f"OUTPUT='{output}': ")
