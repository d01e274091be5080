"""make_tables on results files written here: units, averages, the paper's rows, what is kept apart.

Every expected number is worked out from the values below or from the paper's CSV, read anew.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from make_tables import MISSING, read_tables, render

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = "liuhaotian/llava-v1.5-7b"
# lmms-eval's metrics, in lmms-eval's units, and the cell that they become.
SCORES = {
    "gqa": ({"exact_match,none": 0.5914, "exact_match_stderr,none": 0.01}, "59.1"),
    "mme": ({"mme_cognition_score,none": 312.5, "mme_perception_score,none": 1502.25}, "1814.8"),
    "pope": ({"pope_accuracy,none": 0.5, "pope_f1_score,none": 0.8612}, "86.1"),
    "scienceqa_img": ({"exact_match,none": 0.6886}, "68.9"),
    "vizwiz_vqa_val": ({"exact_match,none": 0.545, "submission,none": None}, "54.5"),
}
TITLES = ["GQA", "MME", "POPE", "SQA_IMG", "VizWiz"]


@pytest.fixture
def write(tmp_path):
    """Write one run's results file, in lmms-eval's shape."""

    def write(task, metrics, budget=None, folder=None, **changes):
        record = {
            "pruned": budget is not None,
            "retention": budget,
            "alpha": None if budget is None else changes.get("alpha", 0.1),
            "object_layer": None if budget is None else changes.get("object_layer", 9),
            "checkpoint": changes.get("checkpoint", CHECKPOINT),
            "images": changes.get("images", 10),
            "visual_tokens_per_image": changes.get("tokens", 576.0 if budget is None else budget),
        }
        result = {
            "results": {task: {"alias": task, "samples": 9, **metrics}},
            "config": {"limit": changes.get("limit")},
            "date": changes.get("date", "20260102_030405"),
            "hiprune": record,
        }
        path = tmp_path / "logs" / (folder or str(len(list(tmp_path.rglob("*_results.json")))))
        path.mkdir(parents=True)
        (path / "20260102_030405_results.json").write_text(json.dumps(result))

    return write


@pytest.fixture
def tables(tmp_path):
    """The rendered tables as rows of cells, and all lines that are no row."""

    def read():
        found = []
        for text in map(render, read_tables(tmp_path / "logs")):
            lines = text.splitlines()
            rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
            rows = [[cell.strip() for cell in row] for row in rows]
            assert set("".join(rows.pop(1))) == {"-"}
            assert len({len(row) for row in rows}) == 1
            found.append((rows, [line for line in lines if line and not line.startswith("|")]))
        return found

    return read


def in_the_csv(table, **chosen):
    """Column -> number of the only row that has these values."""
    with open(ROOT / "results" / "paper" / table, newline="") as file:
        (row,) = (
            row
            for row in csv.DictReader(file)
            if all(row[column] == value for column, value in chosen.items())
        )
    return {column: float(value) for column, value in row.items() if column in TITLES and value}


def test_units_order_and_tokens(write, tables):
    for task, (metrics, _) in reversed(SCORES.items()):
        write(task, metrics, budget=64, tokens=64.0)
        write(task, metrics, budget=192, tokens=192.0)
        write(task, metrics)
    ((rows, notes),) = tables()
    cells = [cell for _, cell in SCORES.values()]
    assert rows[0] == ["tokens", "", *TITLES, "avg %", "tokens in the LLM"]
    ours = [row for row in rows if row[1] == "ours"]
    assert ours == [
        ["unpruned", "ours", *cells, "100.0", "576.0"],
        ["192", "ours", *cells, "100.0", "192.0"],
        ["64", "ours", *cells, "100.0", "64.0"],
    ]
    assert notes[0] == "### llava-v1.5-7b"
    assert notes[1].startswith("alpha = 0.1, object layer 9; ")


def test_the_average_is_of_each_tasks_percentage(write, tables):
    write("pope", {"pope_f1_score,none": 0.8})
    write("gqa", {"exact_match,none": 0.5})
    write("pope", {"pope_f1_score,none": 0.6}, budget=128)
    write("gqa", {"exact_match,none": 0.45}, budget=128)
    ((rows, _),) = tables()
    assert ["128", "ours", "45.0", "60.0", f"{(90 + 75) / 2:.1f}", "128.0"] in rows


def test_missing_cells(write, tables):
    """A task that has not finished leaves a dash, and the average is that of what the row shows."""
    write("pope", {"pope_f1_score,none": 0.8})
    write("gqa", {"exact_match,none": 0.5})
    write("pope", {"pope_f1_score,none": 0.6}, budget=128)
    write("vizwiz_vqa_val", {"exact_match,none": 0.5}, budget=64)
    write("pope", {"pope_f1_score,none": 0.4}, budget=64)
    ((rows, _),) = tables()
    ours = {row[0]: row[2:6] for row in rows if row[1] == "ours"}
    assert ours["128"] == [MISSING, "60.0", MISSING, "75.0"]
    # VizWiz has no unpruned score: an average of POPE alone would pass for one of both.
    assert ours["64"] == [MISSING, "40.0", "50.0", MISSING]
    assert ours["unpruned"] == ["50.0", "80.0", MISSING, "100.0"]


def test_without_an_unpruned_row_there_is_no_average(write, tables):
    write("pope", {"pope_f1_score,none": 0.6}, budget=128)
    ((rows, _),) = tables()
    assert rows[1] == ["128", "ours", "60.0", MISSING, "128.0"]


def test_the_unpruned_row_alone(write, tables):
    write("pope", {"pope_f1_score,none": 0.6})
    ((rows, notes),) = tables()
    assert rows[1] == ["unpruned", "ours", "60.0", "100.0", "576.0"]
    assert not any("alpha" in note for note in notes)


@pytest.mark.parametrize(
    ("checkpoint", "table", "model", "full", "budgets"),
    [
        (CHECKPOINT, "llava_1_5_7b.csv", None, "LLaVA-1.5-7B (vanilla)", (192, 128, 64)),
        ("/my/llava-v1.6-vicuna-7b/", "llava_next_7b.csv", None, "LLaVA-NeXT-7B (vanilla)", (640,)),
        ("x/llava-v1.5-13b", "llava_13b.csv", "LLaVA-1.5-13B", "vanilla", (192, 64)),
        ("x/llava-v1.6-vicuna-13b", "llava_13b.csv", "LLaVA-NeXT-13B", "vanilla", (320,)),
    ],
)  # fmt: skip
def test_the_papers_rows_under_ours(write, tables, checkpoint, table, model, full, budgets):
    for task, (metrics, _) in SCORES.items():
        write(task, metrics, checkpoint=checkpoint)
        for budget in budgets:
            write(task, metrics, budget=budget, checkpoint=checkpoint)
    ((rows, notes),) = tables()

    named = {"model": model} if model else {}
    base = in_the_csv(table, method=full, **named)
    below = dict(zip([row[0] for row in rows], rows[1:], strict=False))

    def paper_row(scores, base):
        cells = [f"{scores[title]:.1f}" if title in scores else MISSING for title in TITLES]
        percent = [100 * scores[title] / base[title] for title in scores]
        return ["", "paper", *cells, f"{sum(percent) / len(percent):.1f}", MISSING]

    on_val = base | {"VizWiz": 54.3} if checkpoint == CHECKPOINT else base
    assert below["unpruned"] == paper_row(base, on_val)
    for budget in budgets:
        scores = in_the_csv(table, method="HiPrune", tokens=str(budget), **named)
        assert below[str(budget)] == paper_row(scores, on_val)
    assert any("VizWiz" in note and "54.3" in note for note in notes) == (checkpoint == CHECKPOINT)


def test_no_paper_row_where_the_paper_has_none(write, tables):
    write("pope", {"pope_f1_score,none": 0.6}, budget=100)
    write("pope", {"pope_f1_score,none": 0.6}, budget=192, checkpoint="me/llava-mine")
    for rows, notes in tables():
        assert [row[1] for row in rows[1:]] == ["ours"]
        assert not any("VizWiz" in note for note in notes)


def test_an_unknown_task_keeps_its_own_unit(write, tables):
    metrics = {"samples": 7, "score_stderr,none": 0.1, "by_kind,none": {"a": 1}, "score,none": 3.25}
    write("other_task", metrics, budget=64)
    write("pope", SCORES["pope"][0], budget=64)
    ((rows, _),) = tables()
    assert rows[0][2:4] == ["POPE", "other_task"]
    assert rows[1][2:4] == ["86.1", "3.2"]


def test_limits_do_not_mix(write, tables):
    write("pope", {"pope_f1_score,none": 0.8})
    write("pope", {"pope_f1_score,none": 0.4}, limit=8.0)
    write("pope", {"pope_f1_score,none": 0.2}, budget=64, limit=8.0)
    write("pope", {"pope_f1_score,none": 0.6}, budget=64)
    found = {any("LIMIT = 8 samples" in note for note in notes): rows for rows, notes in tables()}
    assert [row[3] for row in found[True] if row[1] == "ours"] == ["100.0", "50.0"]
    assert [row[3] for row in found[False] if row[1] == "ours"] == ["100.0", "75.0"]


def test_other_settings_make_another_table_with_the_same_unpruned_row(write, tables):
    write("pope", {"pope_f1_score,none": 0.8})
    write("pope", {"pope_f1_score,none": 0.4}, budget=64)
    write("pope", {"pope_f1_score,none": 0.6}, budget=64, alpha=0.25)
    write("pope", {"pope_f1_score,none": 0.2}, budget=64, object_layer=7)
    found = {notes[1].split(";")[0]: rows for rows, notes in tables()}
    ours = {name: [row[2:4] for row in rows if row[1] == "ours"] for name, rows in found.items()}
    assert ours == {
        "alpha = 0.1, object layer 9": [["80.0", "100.0"], ["40.0", "50.0"]],
        "alpha = 0.25, object layer 9": [["80.0", "100.0"], ["60.0", "75.0"]],
        "alpha = 0.1, object layer 7": [["80.0", "100.0"], ["20.0", "25.0"]],
    }


@pytest.mark.parametrize("budget", [None, 64])
def test_the_newest_of_equal_runs_counts(write, tables, budget):
    score = {"pope_f1_score,none": 0.7}
    write("pope", {"pope_f1_score,none": 0.1}, budget, folder="a", date="20260101_000000")
    write("pope", score, budget, folder="b", date="20260301_000000")
    write("pope", {"pope_f1_score,none": 0.3}, budget, folder="c", date="20260201_000000")
    ((rows, _),) = tables()
    assert rows[1][2] == "70.0"


@pytest.mark.parametrize("state", ["running", "failed"])
def test_only_finished_runs_count(write, tables, tmp_path, state):
    """A run may have written its results, or half of them, before it failed or was interrupted."""
    write("pope", {"pope_f1_score,none": 0.6}, budget=64, folder="pope")
    write("gqa", {"exact_match,none": 0.5}, budget=64, folder=f"gqa.{state}/model")
    (tmp_path / "logs" / f"mme.{state}").mkdir()
    (tmp_path / "logs" / f"mme.{state}" / "20260102_030405_results.json").write_text('{"resu')
    ((rows, _),) = tables()
    assert rows[0][2:-2] == ["POPE"]


def test_other_files_are_left_alone(write, tables, tmp_path):
    write("pope", {"pope_f1_score,none": 0.6}, budget=64)
    stock = {"results": {}, "config": {"limit": None}, "date": "20260101_000000"}
    (tmp_path / "logs" / "stock_results.json").write_text(json.dumps(stock))
    (tmp_path / "logs" / "notes.json").write_text("not JSON")
    assert len(tables()) == 1


def command_line(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "make_tables.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_from_the_command_line(write, tmp_path):
    write("pope", {"pope_f1_score,none": 0.6}, budget=64)
    write("pope", {"pope_f1_score,none": 0.6}, budget=320, checkpoint="x/llava-v1.6-vicuna-7b")
    done = command_line(tmp_path / "logs")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n\n".join(map(render, read_tables(tmp_path / "logs"))) + "\n"
    assert "### llava-v1.5-7b" in done.stdout
    assert "### llava-v1.6-vicuna-7b" in done.stdout


def test_a_folder_without_results(tmp_path):
    for folder, message in [("none", "no such folder"), ("empty", "holds no finished run")]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        done = command_line(tmp_path / folder)
        assert done.returncode == 2
        assert f"logs={str(tmp_path / folder)!r}: {message}" in done.stderr
        assert "Traceback" not in done.stderr


def test_tokens_are_averaged_over_all_images_of_a_row(write, tables):
    write("pope", SCORES["pope"][0], budget=64, tokens=60.0, images=30)
    write("gqa", SCORES["gqa"][0], budget=64, tokens=64.0, images=10)
    ((rows, _),) = tables()
    assert rows[1][-1] == "61.0"
