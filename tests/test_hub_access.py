"""bench.registry: which tasks of lmms-eval want a login to the hub, and have no data here."""

import json
import sys

import pytest

from scripts.bench import registry


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    """A user who never logged in and has nothing in the cache."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_DATASETS_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))


def test_without_a_login_what_is_not_here_is_named(no_login):
    found = registry.without_access(["pope", "mmbench_en_dev", "hiprune_tiny", "pope"])
    assert sorted(found) == ["mmbench_en_dev", "pope"]
    assert found["mmbench_en_dev"].startswith(
        "data set lmms-lab-encoder/MMBench (en) is not on this machine"
    )
    assert "`hf auth login`" in found["pope"] and "HF_TOKEN" in found["pope"]


def test_with_a_login_nothing_is_looked_at(no_login, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    monkeypatch.setattr("subprocess.run", None)
    assert registry.without_access(["pope"]) == {}


def test_what_is_cached_runs(monkeypatch, capsys):
    """The program's own question to datasets, which says what is there."""
    asked = []

    def builder(path, name):
        asked.append((path, name))
        if path.endswith("/GQA"):
            raise ConnectionError("not in the cache")

    monkeypatch.setattr("datasets.load_dataset_builder", builder)
    monkeypatch.setattr(sys, "argv", ["registry.py", "gqa", "pope"])
    assert registry.main() == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {"gqa": "data set lmms-lab-encoder/GQA (testdev_balanced_instructions)"}
    assert ("lmms-lab-encoder/POPE", None) in asked


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (None, False),
        ({}, False),
        ({"token": True}, True),
        ({"token": True, "load_from_disk": True}, False),
    ],
)
def test_which_configurations_want_a_login(arguments, needed):
    assert registry.needs_login({"dataset_kwargs": arguments}) is needed


@pytest.mark.parametrize("task", ["pope", "textvqa_val", "mmbench_en_dev", "gqa", "scienceqa_img"])
def test_a_tasks_file_is_read_as_lmms_eval_reads_it(task):
    from lmms_eval.utils import load_yaml_config

    path = registry.read_registry([task]).files[task]
    theirs = load_yaml_config(yaml_path=str(path), mode="simple")
    ours = registry.read_config(path)
    for name in ("dataset_path", "dataset_name", "dataset_kwargs", "test_split"):
        assert ours.get(name) == theirs.get(name)
    assert ours.keys() - {"include"} == theirs.keys() - {"include"}
