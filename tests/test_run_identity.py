"""run_identity: what decides a score names the folder of the runs, and tables never mix it."""

import json
from dataclasses import replace

import pytest
from table_logs import CHECKPOINT, Logs

from scripts.bench import identity as run_identity
from scripts.bench.identity import differences, with_identity
from scripts.bench.settings import read_settings
from scripts.benchmarks import BENCHMARKS
from scripts.tables.choice import all_that_ran
from scripts.tables.runs import read_tables
from scripts.tiny.task import make_task

LLAVA = BENCHMARKS["llava"]


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "llava, mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 2**17)  # 32 MiB
    return folder


@pytest.fixture
def settings(checkpoint, tmp_path):
    environment = {"CKPT": str(checkpoint), "OUTPUT": str(tmp_path / "logs")}
    return read_settings(LLAVA, False, environment)


def test_what_is_stated(settings):
    found = with_identity(settings)
    stated = json.loads((found.folder / "settings.json").read_text())
    assert stated == found.identity
    names = {"model", "revision", "dtype", "attn_implementation", "conv_template", "device"}
    assert stated.keys() == names | {"seed", "lock", "hiprune"}
    assert stated["lock"].startswith("llava.lock ") and stated["dtype"] == "float32"
    pad = run_identity.identity(replace(settings, benchmark=BENCHMARKS["llava_hf"]))["pad"]
    assert pad is True


def spoil(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "change", ["weights", "end of the weights", "configuration", "dtype", "lock", "version", "gpu"]
)
def test_another_identity_is_another_folder(settings, checkpoint, monkeypatch, change):
    before = with_identity(settings)
    (checkpoint / "README.md").write_text("another card")  # decides nothing
    assert with_identity(settings).folder == before.folder
    assert differences(before) == []
    if "weights" in change:
        spoil(checkpoint / "model.safetensors", 0 if change == "weights" else -1)
    elif change == "configuration":
        (checkpoint / "config.json").write_text("{ }")
    elif change == "dtype":
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr(run_identity, "device", lambda: "cpu")
    elif change == "lock":
        monkeypatch.setattr(
            run_identity.locked, "differences", lambda name: (["torch 3: expected 2"], [])
        )
    elif change == "version":
        monkeypatch.setattr(run_identity, "version", lambda name: "9")
    else:
        monkeypatch.setattr(run_identity, "device", lambda: "NVIDIA X")
    after = with_identity(settings)
    assert after.folder != before.folder
    (line,) = differences(after)
    name = {"version": "hiprune", "gpu": "device", "dtype": "dtype", "lock": "lock"}
    assert line.startswith(f"{before.folder}: {name.get(change, 'revision')} ")


def test_a_checkpoint_elsewhere_is_another_one(settings, tmp_path, checkpoint):
    copy = tmp_path / "copy" / checkpoint.name
    copy.parent.mkdir()
    checkpoint.rename(copy)
    moved = with_identity(replace(settings, checkpoint=str(copy)))
    assert moved.identity["revision"] == run_identity.revision(str(copy))
    assert moved.folder.name.startswith(moved.name) and "," not in moved.folder.name


def test_the_tiny_task_is_part_of_it_wherever_it_lies(tmp_path):
    first, second, third = (
        make_task(tmp_path / name, "llava", scenes=1, seed=seed)
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    )
    hashes = [run_identity.files_hash(task.rglob("*"), task) for task in (first, second, third)]
    assert hashes[0] == hashes[1] != hashes[2]
    (second / "tiny_task.py").write_text("")
    assert run_identity.files_hash(second.rglob("*"), second) != hashes[0]


def test_a_version_that_the_set_up_was_told_counts(monkeypatch):
    before = run_identity.lock_state("qwen")
    monkeypatch.setattr(
        run_identity.locked, "differences", lambda name: (["transformers 5.17"], [])
    )
    assert run_identity.lock_state("qwen") == f"{before.partition(' but')[0]} but transformers 5.17"


def test_tables_never_mix_them(tmp_path):
    logs = Logs(tmp_path / "logs")
    run = {"dtype": "float16", "lock": "llava.lock 1", "seed": "0"}
    for number, changes in enumerate(({}, {"dtype": "float32"})):
        for budget in (None, 64):
            score = {"pope_f1_score,none": 0.5 + number / 10}
            logs.write("pope", score, budget, run=run | changes)
    logs.write("gqa", {"exact_match,none": 0.25}, 64)  # states nothing
    tables = read_tables(logs.folder)
    assert [t.apart for t in tables] == [
        ["dtype = float16"], ["dtype = float32"], ["settings not stated"]
    ]  # fmt: skip
    assert [t.rows[64] for t in tables] == [{"pope": 50.0}, {"pope": 60.0}, {"gqa": 25.0}]
    assert [t.rows.get("unpruned") for t in tables] == [{"pope": 50.0}, {"pope": 60.0}, None]
    (sheet,) = all_that_ran(tables)
    groups = [f"LLaVA-1.5-7B ({CHECKPOINT}, {t.apart[0]})" for t in tables]
    assert sheet.groups == groups


def test_all_that_is_alike_is_not_told(tmp_path):
    logs = Logs(tmp_path / "logs")
    logs.write("pope", {"pope_f1_score,none": 0.5}, 64, run={"dtype": "float16"})
    logs.write("pope", {"pope_f1_score,none": 0.5}, 128, run={"dtype": "float16"})
    (table,) = read_tables(logs.folder)
    assert table.apart == [] and table.identity == {"dtype": "float16"}
