"""The variables of the bench scripts: what is expected, what is run, and what --help says of it."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hiprune import HiPruneError
from scripts.bench.plan import plan
from scripts.bench.settings import read_settings
from scripts.benchmarks import BENCHMARKS

ROOT = Path(__file__).resolve().parents[1]
LLAVA, NEXT = BENCHMARKS["llava"], BENCHMARKS["llava_next"]
SCRIPTS = {"bench_llava.sh": LLAVA, "bench_llava_next.sh": NEXT}
VARIABLES = (
    "CKPT", "TASKS", "RETENTIONS", "HIPRUNE_RETENTION", "HIPRUNE_ALPHA", "HIPRUNE_OBJECT_LAYER",
    "LIMIT", "NUM_PROCESSES", "ENGINE", "ENGINE_ARGS", "OUTPUT", "VENV",
)  # fmt: skip
ONE_BUDGET = {"HIPRUNE_RETENTION": "64"}
NO_INTEGER = ("", "abc", "0", "-1", "nan", "1.5", "1_0", "１", "0x10")
NO_SHARE = ("", "abc", "-0.1", "1.5", "nan", "inf", "0,1")


def bash(script, *arguments, **variables):
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    env |= {name: str(value) for name, value in variables.items()}
    command = ["bash", str(ROOT / script), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("argument", ["--help", "-h"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_variable_and_default(script, argument, tmp_path):
    """The texts are written by hand; the defaults that they name are those of the code."""
    done = bash(script, argument, VENV=tmp_path / "venv", OUTPUT=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in (*VARIABLES, "--tiny", "--help"):
        assert any(line.split()[:1] == [name] for line in lines), name
    benchmark = SCRIPTS[script]
    retentions = " ".join(map(str, benchmark.retentions))
    defaults = (benchmark.checkpoint, " ".join(benchmark.tasks), f"unpruned {retentions}")
    for default in (*defaults, ".venv-llava"):
        assert f"(default {default})" in done.stdout
    assert f"1 to {576 if benchmark is LLAVA else 2880} tokens" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_of_the_setup(tmp_path):
    done = bash("setup_llava.sh", "--help", VENV=tmp_path / "venv")
    assert done.returncode == 0, done.stderr
    for name in ("VENV", "PYTHON"):
        assert any(line.split()[:1] == [name] for line in done.stdout.splitlines())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", [*SCRIPTS, "setup_llava.sh"])
@pytest.mark.parametrize("arguments", [["--tiney"], ["HIPRUNE_RETENTION=64"], [""]])
def test_an_unknown_argument(script, arguments, tmp_path):
    if script in SCRIPTS:
        arguments = ["--tiny", *arguments]
    elif arguments == [""]:
        pytest.skip("the same as none")
    done = bash(script, *arguments, VENV=tmp_path / "venv")
    assert done.returncode == 2
    expected = f"{script}: unknown argument '{arguments[-1]}'; expected"
    assert done.stderr.startswith(expected) and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


BAD = (
    [("llava", "HIPRUNE_RETENTION", text) for text in (*NO_INTEGER, "577", "unpruned")]
    + [("llava_next", "HIPRUNE_RETENTION", text) for text in ("", "0", "2881", "0.5")]
    + [("llava", "HIPRUNE_ALPHA", text) for text in NO_SHARE]
    + [("llava", "HIPRUNE_OBJECT_LAYER", text) for text in (*NO_INTEGER, "25")]
    + [("llava", name, text) for name in ("NUM_PROCESSES", "LIMIT") for text in NO_INTEGER]
    + [("llava", "RETENTIONS", text) for text in ("", "  ", ",64", "all", "64 577", "0", "1.5")]
    + [("llava_next", "RETENTIONS", "unpruned 2881")]
    + [("qwen2_5_vl", "RETENTIONS", text) for text in ("0.00001", "0.334 4e-4")]
    + [("qwen2_5_vl", "HIPRUNE_QWEN_RETENTION", "0.00001")]
    + [("llava", "TASKS", text) for text in ("", " ", ",")]
)


@pytest.mark.parametrize(("family", "name", "value"), BAD)
def test_bad_values(family, name, value):
    with pytest.raises(HiPruneError) as error:
        read_settings(BENCHMARKS[family], False, {name: value})
    message = str(error.value)
    assert message.startswith(f"{name}={value!r}: ")
    assert "expected " in message


def test_one_budget_or_several():
    with pytest.raises(HiPruneError, match=r"HIPRUNE_RETENTION='64' and RETENTIONS='64': expected"):
        read_settings(LLAVA, False, {"HIPRUNE_RETENTION": "64", "RETENTIONS": "64"})


def test_defaults_are_the_papers():
    settings = read_settings(LLAVA, False, {})
    assert settings.checkpoint == "liuhaotian/llava-v1.5-7b"
    assert settings.tasks == ("gqa", "mme", "pope", "scienceqa_img", "vizwiz_vqa_val")
    assert settings.budgets == ("unpruned", "192", "128", "64")
    assert (settings.processes, settings.limit) == (1, None)
    assert (settings.config.alpha, settings.config.object_layer) == (0.1, 9)
    assert settings.output == ROOT / "logs"
    settings = read_settings(NEXT, False, {})
    assert settings.checkpoint == "liuhaotian/llava-v1.6-vicuna-7b"
    assert settings.tasks == ("pope", "scienceqa_img", "vizwiz_vqa_val")
    assert settings.budgets == ("unpruned", "640", "320", "160")


def test_what_the_variables_choose(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = {
        "CKPT": "/models/llava-mine/",
        "TASKS": "pope, gqa",
        "RETENTIONS": "unpruned 64,17",
        "HIPRUNE_ALPHA": "0.25",
        "HIPRUNE_OBJECT_LAYER": "7",
        "NUM_PROCESSES": "2",
        "LIMIT": "5",
        "OUTPUT": "here",
    }
    runs = plan(read_settings(LLAVA, False, environment))
    assert [(run.environment.get("HIPRUNE_RETENTION"), run.folder.name) for run in runs] == [
        (budget, task) for budget in (None, "64", "17") for task in ("pope", "gqa")
    ]
    assert {run.folder.parents[2] for run in runs} == {tmp_path / "here"}
    assert "llava-mine" in runs[0].folder.parents[1].name
    command = runs[-1].command(tmp_path)
    assert command[command.index("--tasks") + 1] == "gqa"
    assert command[command.index("--limit") + 1] == "5"
    assert "torch.distributed.run --standalone --nproc_per_node 2 -m lmms_eval" in " ".join(command)
    model_args = command[command.index("--model_args") + 1].split(",")
    assert {"pretrained=/models/llava-mine/", "prune=True"} < set(model_args)
    assert "prune=False" in " ".join(runs[0].command(tmp_path))


def test_tiny_stays_off_the_hub():
    runs = plan(read_settings(LLAVA, True, {}))
    assert [run.folder.name for run in runs] == ["hiprune_tiny"] * 4
    for run in runs:
        assert run.environment["HF_HUB_OFFLINE"] == run.environment["HF_DATASETS_OFFLINE"] == "1"
        command = run.command(run.folder)
        include_path = Path(command[command.index("--include_path") + 1])
        assert include_path == ROOT / ".tiny" / "tasks" / "llava"


def test_the_small_task_is_found_without_tiny():
    """By any checkpoint, and by no other task's run."""
    small, other = plan(read_settings(LLAVA, False, {"TASKS": "hiprune_tiny pope", **ONE_BUDGET}))
    command = small.command(small.folder)
    assert command[command.index("--include_path") + 1] == str(ROOT / ".tiny" / "tasks" / "llava")
    assert "HF_HUB_OFFLINE" not in small.environment  # the checkpoint may be on the hub
    assert "--include_path" not in other.command(other.folder)


@pytest.mark.parametrize("family", BENCHMARKS)
def test_tiny_has_defaults_of_its_own(family):
    benchmark = BENCHMARKS[family]
    settings = read_settings(benchmark, True, {})
    tiny = benchmark.tiny
    assert settings.checkpoint == str(tiny.checkpoint)
    assert settings.budgets == ("unpruned", *map(str, tiny.retentions))
    assert settings.config.object_layer == settings.object_layer == tiny.object_layer
    runs = plan(settings)
    assert not any("layer" in run.label for run in runs)
    pruned = [run.environment for run in runs[1:]]
    assert all(env["HIPRUNE_OBJECT_LAYER"] == str(tiny.object_layer) for env in pruned)
    model_args = runs[0].command(runs[0].folder)
    model_args = model_args[model_args.index("--model_args") + 1].split(",")
    # Its scenes have 336 x 336 pixels, less than the released model's smallest image.
    assert ("min_pixels=112896" in model_args) is (family == "qwen2_5_vl")
    real = read_settings(benchmark, False, {})
    assert "min_pixels=112896" not in " ".join(plan(real)[0].command(runs[0].folder))
    assert real.object_layer == (16 if family == "qwen2_5_vl" else 9)


def test_tiny_with_settings_of_the_caller():
    environment = {"HIPRUNE_OBJECT_LAYER": "5", "HIPRUNE_RETENTION": "17", "CKPT": "/mine/llava"}
    settings = read_settings(LLAVA, True, environment)
    assert (settings.checkpoint, settings.budgets) == ("/mine/llava", ("17",))
    (run,) = plan(settings)
    assert run.label == "N' = 17, layer 5, hiprune_tiny"
    assert run.environment["HIPRUNE_OBJECT_LAYER"] == "5"


def test_both_formats_of_a_tiny_checkpoint_have_a_folder_of_their_own():
    folders = {read_settings(benchmark, True, {}).folder for benchmark in BENCHMARKS.values()}
    assert len(folders) == len(BENCHMARKS)
    assert {folder.parent for folder in folders} == {ROOT / "logs"}


def folder(**changes):
    settings = read_settings(LLAVA, False, {"HIPRUNE_RETENTION": "64", "TASKS": "pope"})
    (run,) = plan(replace(settings, **changes))
    return run.folder


@pytest.mark.parametrize(
    "changes", [{"limit": 3}, {"budgets": ("65",)}, {"budgets": ("unpruned",)}]
)
def test_other_settings_have_another_folder(changes):
    """What has finished is told by its folder alone."""
    assert folder(**changes) != folder()


def test_equal_names_of_other_checkpoints_have_another_folder():
    """Someone's training runs are "first/checkpoint-100" and "second/checkpoint-100"."""
    first, second = "/runs/first/llava-100", "/runs/second/llava-100"
    assert folder(checkpoint=first) != folder(checkpoint=second)
    assert folder(checkpoint=first) == folder(checkpoint=first + "/")


def test_one_process_needs_no_launcher():
    """accelerate's would read the user's default_config.yaml: DeepSpeed, FSDP, a foreign master."""
    (run,) = plan(read_settings(LLAVA, False, {"HIPRUNE_RETENTION": "64", "TASKS": "pope"}))
    command = run.command(run.folder)
    assert command[1:5] == ["-W", "ignore", "-m", "lmms_eval"]


@pytest.mark.parametrize("name", ["a,b/llava", "[a]", "it's", 'say "a"', "123", "1e5", "True"])
def test_a_checkpoint_of_any_name(name, tmp_path):
    """As lmms-eval reads its arguments: the model gets the very name, and the folder has none of
    the characters that it splits at."""
    from lmms_eval.utils import simple_parse_args_string

    from hiprune.lmms.base import unquoted

    settings = read_settings(LLAVA, False, {"CKPT": name, "TASKS": "pope", "OUTPUT": str(tmp_path)})
    run = plan(settings)[-1]
    command = run.command(run.folder)
    found = simple_parse_args_string(command[command.index("--model_args") + 1])
    assert unquoted(found["pretrained"]) == name
    assert found["conv_template"] == "vicuna_v1" and found["prune"] is True
    assert not set(",'\"[]") & set(str(settings.folder.relative_to(tmp_path)))


@pytest.mark.parametrize("spelling", ["064", "+64", " 64 "])
def test_equal_budgets_have_the_same_folder(spelling):
    environment = {"HIPRUNE_RETENTION": spelling, "TASKS": "pope"}
    (run,) = plan(read_settings(LLAVA, False, environment))
    assert run.folder == folder()
