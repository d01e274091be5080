"""What of ours is compared with the paper's: splits, measures, limits, other methods."""

import pytest
from table_logs import CHECKPOINT, Logs, in_the_csv, read, rows_of, titles
from table_logs import SCORES as OURS

from scripts.tables.choice import all_that_ran, chosen
from scripts.tables.paper import TABLES, UNPRUNED
from scripts.tables.runs import read_tables

TABLE_2 = ["GQA", "MMB", "MMB_CN", "MME", "POPE", "SQA_IMG", "VQAv2", "TextVQA", "VizWiz"]


@pytest.fixture
def logs(tmp_path):
    return Logs(tmp_path / "logs")


def test_an_unpruned_vizwiz_that_is_probably_of_test(logs):
    """LLaVA-NeXT-7B's is LLaVA's own; what is taken of it is marked, and nothing else."""
    checkpoint = {"checkpoint": "liuhaotian/llava-v1.6-vicuna-7b"}
    for budget in (None, 640, 320):
        logs.write("vizwiz_vqa_val", {"exact_match,none": 0.6}, budget, **checkpoint)
    for budget in (None, 640, 320, 160):
        logs.write("pope", {"pope_f1_score,none": 0.8}, budget, **checkpoint)
    (sheet,) = chosen("3", read_tables(logs.folder), others=True)
    headings = [heading.title for heading in sheet.headings]
    marked = {
        (block.label, row.kind, headings[index])
        for block in sheet.blocks
        for row in block.rows
        for index in row.marked
    }
    taken = {(n, kind) for n in ("640", "320", "160") for kind in ("paper", "other")}
    assert marked == {
        ("unpruned", "paper", "VizWiz"),
        *((n, kind, "printed avg %") for n, kind in taken),
        # At 160 ours has no VizWiz: the averages beside it are without it.
        *((n, kind, "avg %") for n in ("640", "320") for kind in ("paper", "other", "difference")),
    }
    rows = rows_of(sheet)
    (group,) = sheet.groups
    unpruned = rows[group, "unpruned", "difference"]
    assert unpruned["VizWiz"] is None and unpruned["POPE"] == pytest.approx(80 - 86.5)
    assert rows[group, "640", "difference"]["VizWiz"] == pytest.approx(60 - 59.9)
    assert not any(heading.startswith("avg %,") for heading in headings)
    for said in ("LLaVA-NeXT-7B, 57.6,", "up to 59.9", "`llava-v1.6-vicuna-7b`", "MODEL_ZOO.md"):
        assert said in sheet.remark
    assert "LLaVA-1.5-13B" not in sheet.remark


def test_whose_vizwiz_is_of_another_split():
    """The numbers of LLaVA's docs/MODEL_ZOO.md; LLaVA-NeXT-13B's there is another, 60.5."""
    models = [(table, model) for table in TABLES.values() for model in table.models]
    known = {m.name: t.rows(m)[UNPRUNED]["VizWiz"] for t, m in models if m.vizwiz_val is not None}
    probable = {m.name: t.rows(m)[UNPRUNED]["VizWiz"] for t, m in models if m.vizwiz_test}
    assert known == {"LLaVA-1.5-7B": 50.0}
    assert probable == {"LLaVA-NeXT-7B": 57.6, "LLaVA-1.5-13B": 53.6}


def test_another_measure_is_shown_and_not_compared(logs):
    """The paper's TextVQA of LLaVA-1.5 has OCR tokens in the prompt; its Qwen's is lmms-eval's."""
    qwen = {"checkpoint": "Qwen/Qwen2.5-VL-7B-Instruct", "object_layer": 16}
    for task, changes in (("textvqa_val", {}), ("pope", {}), ("textvqa_val", qwen)):
        metric = "pope_f1_score,none" if task == "pope" else "exact_match,none"
        for budget in (None, 0.334 if changes else 192):
            logs.write(task, {metric: 0.5}, budget, **changes)
    runs = read_tables(logs.folder)
    (two,), (eight,) = chosen("2", runs), chosen("8", runs)
    llava = rows_of(two)[f"LLaVA-1.5-7B ({CHECKPOINT})", "192", "difference"]
    assert llava["TextVQA"] is None and llava["POPE"] is not None and llava["columns"] == 1
    measure = {measure.title: measure for measure in two.measures}["TextVQA"]
    assert "`textvqa_val`" in measure.ours and "so not compared" in measure.ours
    assert "OCR tokens" in measure.paper
    group = "Qwen2.5-VL-7B (Qwen/Qwen2.5-VL-7B-Instruct)"
    assert rows_of(eight)[group, "0.334", "difference"]["TextVQA"] == pytest.approx(50 - 78.5)


def test_other_methods_on_request(logs):
    logs.write("pope", OURS["pope"][0], 192)
    logs.write("pope", OURS["pope"][0])
    runs = read_tables(logs.folder)
    assert {row.kind for b in chosen("2", runs)[0].blocks for row in b.rows} == {
        "ours", "paper", "difference",
    }  # fmt: skip
    ((rows, _),) = read(chosen("2", runs, others=True))
    fastv = [row for row in rows if row[1] == "FastV (paper)"]
    printed = [
        in_the_csv("llava_1_5_7b.csv", method="FastV", tokens=n)["POPE"] for n in ("192", "64")
    ]
    pope = rows[0].index("POPE")
    assert [fastv[0][pope], fastv[2][pope]] == printed
    # Where ours stands in the block, their averages too are over the columns of ours.
    assert fastv[0][rows[0].index("columns")] == "1"
    assert fastv[2][rows[0].index("columns")] == "9"


def test_a_limit_stands_apart(logs):
    logs.write_all(None, 192, limit=8.0)
    logs.write("pope", OURS["pope"][0], 192)
    runs = read_tables(logs.folder)
    whole, limited = chosen("2", runs)
    assert (whole.limit, limited.limit) == (None, 8.0)
    (rows, _), (limited_rows, notes) = read([whole, limited])
    assert {row[1] for row in rows[1:]} == {"ours", "paper", "difference"}
    assert {row[1] for row in limited_rows[1:]} == {"ours, LIMIT 8", "paper"}
    assert notes[0].endswith(", LIMIT = 8 samples a task")
    assert any("LIMIT = 8 samples a task: not the benchmark's score" in note for note in notes)
    assert any("`LIMIT=8 bash bench_llava.sh`" in note for note in notes)
    assert titles(all_that_ran(runs)) == titles([whole, limited])
