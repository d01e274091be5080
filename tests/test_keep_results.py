"""tables.results: the kept runs make the tables that the logs made, and hold no path of here."""

from __future__ import annotations

import json

import pytest
from table_logs import CHECKPOINT, Logs

from scripts.benchmarks import ROOT
from scripts.tables.results import FILES, KEPT, keep
from scripts.tables.runs import read_tables


def test_kept_runs_make_the_same_tables(tmp_path):
    logs = Logs(tmp_path / "logs")
    logs.write_all(None, 192, 64)
    logs.write("pope", {"pope_f1_score,none": 0.5}, 192, variant={"method": "random", "seed": 1})
    logs.write("pope", {"pope_f1_score,none": 0.4}, 192, folder="64.failed")
    assert keep(logs.folder, tmp_path / "kept") == 16
    assert read_tables(tmp_path / "kept") == read_tables(logs.folder)
    (tmp_path / "kept" / KEPT).write_text("")
    assert read_tables(tmp_path / "kept") == []


def test_files_are_this_runs_own(tmp_path):
    logs, target = Logs(tmp_path / "logs"), tmp_path / "kept"
    logs.write_all(None)
    (logs.folder / "table.md").write_text("new")
    target.mkdir()
    for name in FILES:
        (target / name).write_text("old")
    keep(logs.folder, target)
    assert {path.name: path.read_text() for path in target.iterdir() if path.name != KEPT} == {
        "table.md": "new"
    }


def test_a_checkpoint_of_the_clone_loses_the_clones_place(tmp_path):
    logs = Logs(tmp_path / "logs")
    logs.write("pope", {"pope_f1_score,none": 0.5}, checkpoint=str(ROOT / "assets" / "some"))
    logs.write("pope", {"pope_f1_score,none": 0.5}, 64, checkpoint=CHECKPOINT)
    keep(logs.folder, tmp_path / "kept")
    lines = (tmp_path / "kept" / KEPT).read_text().splitlines()
    found = {json.loads(line)["hiprune"]["checkpoint"] for line in lines}
    assert found == {"assets/some", CHECKPOINT}
    assert str(ROOT) not in "".join(lines)


def test_nothing_to_keep(tmp_path):
    with pytest.raises(SystemExit, match=r"no finished run; expected a folder that"):
        keep(tmp_path, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
