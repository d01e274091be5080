"""Which finished runs make a table, and which tables there are of one checkpoint."""

import json

import pytest
from table_logs import (
    SCORES,
    Logs,
    parse_markdown,
)

from scripts.tables.layouts import render
from scripts.tables.runs import read_tables

LAST = ["avg %", "columns", "tokens in the LLM"]


@pytest.fixture
def logs(tmp_path):
    return Logs(tmp_path / "logs")


@pytest.fixture
def tables(logs):
    """The plain tables as rows of cells, and all lines that are no row."""
    return lambda: [parse_markdown(render(table))[0] for table in read_tables(logs.folder)]


def of(kind, rows):
    return [row for row in rows if row[1] == kind]


def test_limits_do_not_mix(logs, tables):
    for limit, full, pruned in ((None, 0.8, 0.6), (8.0, 0.4, 0.2)):
        logs.write("pope", {"pope_f1_score,none": full}, limit=limit)
        logs.write("pope", {"pope_f1_score,none": pruned}, 64, limit=limit)
    found = {any("LIMIT = 8 samples" in note for note in notes): rows for rows, notes in tables()}
    assert [row[3] for row in of("ours, LIMIT 8", found[True])] == ["100.0", "50.0"]
    assert [row[3] for row in of("ours", found[False])] == ["100.0", "75.0"]
    assert of("difference", found[False]) and not of("difference", found[True])


def test_other_settings_make_another_table_with_the_same_unpruned_row(logs, tables):
    logs.write("pope", {"pope_f1_score,none": 0.8})
    logs.write("pope", {"pope_f1_score,none": 0.4}, 64)
    logs.write("pope", {"pope_f1_score,none": 0.6}, 64, alpha=0.25)
    logs.write("pope", {"pope_f1_score,none": 0.2}, 64, object_layer=7)
    logs.write("pope", {"pope_f1_score,none": 0.1}, 64, variant={"buffer": "row"})
    found = {notes[1].split("; avg")[0]: (rows, notes) for rows, notes in tables()}
    ours = {name: [row[2:4] for row in of("ours", rows)] for name, (rows, _) in found.items()}
    assert ours == {
        "alpha = 0.1, object layer 9": [["80.0", "100.0"], ["40.0", "50.0"]],
        "alpha = 0.25, object layer 9": [["80.0", "100.0"], ["60.0", "75.0"]],
        "alpha = 0.1, object layer 7": [["80.0", "100.0"], ["20.0", "25.0"]],
        "alpha = 0.1, object layer 9; buffer = row": [["80.0", "100.0"], ["10.0", "12.5"]],
    }
    papers = "The paper's rows are of alpha = 0.1, object layer 9."
    told = {name: papers in notes for name, (_, notes) in found.items()}
    assert list(told.values()) == [False, True, True, False]
    assert not of("paper", found["alpha = 0.1, object layer 9; buffer = row"][0])


def test_titles_tell_tables_of_one_checkpoint_apart(logs, tables):
    pope = {"pope_f1_score,none": 0.5}
    logs.write("pope", pope, checkpoint="t/tiny")
    settings = [
        {},
        {"variant": {"method": "random", "seed": 0}},
        {"variant": {"method": "random", "seed": 1}},
        {"variant": {"buffer": "row"}},
        {"variant": {"registers": False}, "object_layer": 5},
        {"alpha": 0.25},
        {"alpha": 0.25, "object_layer": 5, "checkpoint": "t/other"},
        {"limit": 8.0, "alpha": 0.5},
    ]
    for number, changes in enumerate(settings):
        changes = {"checkpoint": "t/tiny", "date": f"20260201_00000{number}", **changes}
        logs.write("pope", pope, 24, **changes)
    assert [notes[0] for _, notes in tables()] == [
        "### tiny",
        "### tiny, method = random, seed = 0",
        "### tiny, method = random, seed = 1",
        "### tiny, buffer = row",
        "### tiny, object layer 5, registers = False",
        "### tiny, alpha = 0.25",
        "### other",
        "### tiny, LIMIT = 8 samples a task",
    ]


@pytest.mark.parametrize("budget", [None, 64])
def test_the_newest_of_equal_runs_counts(logs, tables, budget):
    score = {"pope_f1_score,none": 0.7}
    logs.write("pope", {"pope_f1_score,none": 0.1}, budget, folder="a", date="20260101_000000")
    logs.write("pope", score, budget, folder="b", date="20260301_000000")
    logs.write("pope", {"pope_f1_score,none": 0.3}, budget, folder="c", date="20260201_000000")
    ((rows, _),) = tables()
    assert rows[1][2] == "70.0"


@pytest.mark.parametrize("state", ["running", "failed"])
def test_only_finished_runs_count(logs, tables, state):
    """A run may have written its results, or half of them, before it failed or was interrupted."""
    logs.write("pope", {"pope_f1_score,none": 0.6}, 64, folder="pope", checkpoint="me/mine")
    logs.write("gqa", {"exact_match,none": 0.5}, 64, folder=f"gqa.{state}/model")
    (logs.folder / f"mme.{state}").mkdir()
    (logs.folder / f"mme.{state}" / "20260102_030405_results.json").write_text('{"resu')
    ((rows, _),) = tables()
    assert rows[0][2:] == ["POPE", *LAST]


def test_other_files_are_left_alone(logs, tables):
    logs.write("pope", {"pope_f1_score,none": 0.6}, 64)
    stock = {"results": {}, "config": {"limit": None}, "date": "20260101_000000"}
    (logs.folder / "stock_results.json").write_text(json.dumps(stock))
    (logs.folder / "notes.json").write_text("not JSON")
    assert len(tables()) == 1


def test_tokens_are_averaged_over_all_images_of_a_row(logs, tables):
    logs.write("pope", SCORES["pope"][0], 64, tokens=60.0, images=30)
    logs.write("gqa", SCORES["gqa"][0], 64, tokens=64.0, images=10)
    ((rows, _),) = tables()
    assert rows[1][-1] == "61.0"
