"""make_tables on results files written here: units, averages, the paper's rows, what is kept apart.

Every expected number is worked out from the values written, or from the paper's CSV, read anew.
"""

import pytest
from table_logs import (
    CHECKPOINT,
    SCORES,
    TITLES,
    Logs,
    in_the_csv,
    numbers,
    parse_markdown,
)

from scripts.tables.layouts import render
from scripts.tables.runs import read_tables
from scripts.tables.sheet import MARK, MISSING

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


def test_units_order_and_tokens(logs, tables):
    for task, (metrics, _) in reversed(SCORES.items()):
        logs.write(task, metrics, 50, tokens=50.0, checkpoint="me/mine")
        logs.write(task, metrics, 200, tokens=200.0, checkpoint="me/mine")
        logs.write(task, metrics, checkpoint="me/mine")
    ((rows, notes),) = tables()
    cells = [cell for _, cell in SCORES.values()]
    assert rows == [
        ["tokens", "", *TITLES, *LAST],
        ["unpruned", "ours", *cells, "100.0", "5", "576.0"],
        ["200", "ours", *cells, "100.0", "5", "200.0"],
        ["50", "ours", *cells, "100.0", "5", "50.0"],
    ]
    assert notes[0] == "### mine"
    assert notes[1].startswith("alpha = 0.1, object layer 9; ")


def test_the_average_is_of_each_tasks_percentage(logs, tables):
    logs.write("pope", {"pope_f1_score,none": 0.8})
    logs.write("gqa", {"exact_match,none": 0.5})
    logs.write("pope", {"pope_f1_score,none": 0.6}, 128)
    logs.write("gqa", {"exact_match,none": 0.45}, 128)
    ((rows, _),) = tables()
    average = (90 + 75) / 2
    assert ["128", "ours", "45.0", "60.0", f"{average:.1f}", "2", MISSING, "128.0"] in rows
    # The paper's, over the same two columns, beside the average that it prints over all.
    base = in_the_csv("llava_1_5_7b.csv", tokens="576")
    paper = in_the_csv("llava_1_5_7b.csv", tokens="128", method="HiPrune")
    theirs = sum(100 * float(paper[c]) / float(base[c]) for c in ("GQA", "POPE")) / 2
    printed = paper["avg_printed_%"]
    assert [
        "",
        "paper",
        paper["GQA"],
        paper["POPE"],
        f"{theirs:.1f}",
        "2",
        printed,
        MISSING,
    ] in rows
    gqa, pope = 45 - float(paper["GQA"]), 60 - float(paper["POPE"])
    difference = [f"{d:+.1f}" for d in (gqa, pope, average - theirs)]
    assert ["", "difference", *difference, "2", MISSING, MISSING] in rows


def test_missing_cells(logs, tables):
    """A task that has not finished leaves a dash, and the count says what an average is over."""
    logs.write("pope", {"pope_f1_score,none": 0.8}, checkpoint="me/mine")
    logs.write("gqa", {"exact_match,none": 0.5}, checkpoint="me/mine")
    logs.write("pope", {"pope_f1_score,none": 0.6}, 128, checkpoint="me/mine")
    logs.write("vizwiz_vqa_val", {"exact_match,none": 0.5}, 64, checkpoint="me/mine")
    ((rows, _),) = tables()
    ours = {row[0]: row[2:7] for row in of("ours", rows)}
    assert ours["unpruned"] == ["50.0", "80.0", MISSING, "100.0", "2"]
    assert ours["128"] == [MISSING, "60.0", MISSING, "75.0", "1"]
    # VizWiz has no unpruned score that it could be a percentage of.
    assert ours["64"] == [MISSING, MISSING, "50.0", MISSING, MISSING]


def test_without_an_unpruned_row_there_is_no_average(logs, tables):
    logs.write("pope", {"pope_f1_score,none": 0.6}, 128, checkpoint="me/mine")
    ((rows, _),) = tables()
    assert rows[1] == ["128", "ours", "60.0", MISSING, MISSING, "128.0"]


def test_the_unpruned_row_alone(logs, tables):
    logs.write("pope", {"pope_f1_score,none": 0.6}, checkpoint="me/mine")
    ((rows, notes),) = tables()
    assert rows[1] == ["unpruned", "ours", "60.0", "100.0", "1", "576.0"]
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
def test_the_papers_rows_under_ours(logs, tables, checkpoint, table, model, full, budgets):
    logs.write_all(None, *budgets, checkpoint=checkpoint)
    ((rows, notes),) = tables()
    named = {"model": model} if model else {}
    base = numbers(in_the_csv(table, method=full, **named), TITLES)
    below = dict(zip([row[0] for row in rows], rows[1:], strict=False))
    average = rows[0].index("avg %")
    of_test = {"llava-v1.6-vicuna-7b", "llava-v1.5-13b"} & {checkpoint.strip("/").split("/")[-1]}
    for budget in budgets:
        printed = in_the_csv(table, method="HiPrune", tokens=str(budget), **named)
        scores = numbers(printed, TITLES)
        cells = [f"{scores[title]:.1f}" if title in scores else MISSING for title in TITLES]
        row = rows[rows.index(next(r for r in rows if r[0] == str(budget))) + 1]
        assert row[1 : 2 + len(TITLES)] == ["paper", *cells]
        on_val = base | {"VizWiz": 54.3} if checkpoint == CHECKPOINT else base
        percent = [100 * scores[title] / on_val[title] for title in scores]
        mark = MARK if of_test else ""
        assert row[average] == f"{sum(percent) / len(percent):.1f}{mark}"
        assert row[rows[0].index("columns")] == str(len(percent))
    assert below["unpruned"][1] == "paper"
    assert any("VizWiz" in note and "54.3" in note for note in notes) == (checkpoint == CHECKPOINT)
    assert ("avg %, VizWiz of 50.0" in rows[0]) == (checkpoint == CHECKPOINT)
    assert any(note.startswith(f"{MARK}: ") for note in notes) == bool(of_test)
    vizwiz = rows[0].index("VizWiz")
    assert below["unpruned"][vizwiz] == f"{base['VizWiz']:.1f}{MARK if of_test else ''}"
    split = bool(of_test) or checkpoint == CHECKPOINT
    assert (rows[3][1], rows[3][vizwiz] == MISSING) == ("difference", split)


def test_no_paper_row_where_the_paper_has_none(logs, tables):
    logs.write("pope", {"pope_f1_score,none": 0.6}, 100)
    logs.write("pope", {"pope_f1_score,none": 0.6}, 192, checkpoint="me/llava-mine")
    logs.write("other_task", {"score,none": 0.6}, 192, checkpoint="x/llava-v1.5-13b")
    for rows, notes in tables():
        assert [row[1] for row in rows[1:]] == ["ours"]
        assert not any("aper" in note for note in notes)


def test_an_unknown_task_keeps_its_own_unit(logs, tables):
    metrics = {"samples": 7, "score_stderr,none": 0.1, "by_kind,none": {"a": 1}, "score,none": 3.25}
    logs.write("other_task", metrics, 64)
    logs.write("pope", SCORES["pope"][0], 64)
    ((rows, notes),) = tables()
    assert rows[0][2:4] == ["POPE", "other_task: score"]
    assert rows[1][2:4] == ["86.1", "3.2500"]
    assert "- other_task: score, ours: lmms-eval 0.7.3 `other_task`, `score` as it is" in notes


def test_an_unknown_task_with_several_metrics_shows_all(logs, tables):
    """lmms-eval does not say which is the score; a difference in the third digit is seen."""
    metrics = {"relaxed_overall,none": 0.6123, "relaxed_human,none": 0.5, "acc,strict": 0.25}
    logs.write("chartqa", metrics)
    logs.write("chartqa", metrics | {"relaxed_overall,none": 0.6098}, 64)
    ((rows, notes),) = tables()
    names = ["relaxed_overall", "relaxed_human", "acc (strict)"]
    cells = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert cells[0]["chartqa: relaxed_overall"] == "0.6123"
    assert cells[1]["chartqa: relaxed_overall"] == "0.6098"
    assert {f"chartqa: {name}" for name in names} < set(rows[0])
    assert cells[1]["columns"] == MISSING
    assert any(note.endswith("`relaxed_human` as it is; not in the averages") for note in notes)


def test_the_metrics_of_a_group_are_those_of_its_tasks(logs, tables):
    metrics = {"pope_accuracy,none": 0.5, "pope_f1_score,none": 0.25}
    logs.write("pope_full", {" ": " "}, 64, more={"pope_adv": metrics, "pope_pop": metrics})
    ((rows, notes),) = tables()
    assert "pope_adv: pope_f1_score" in rows[0] and "pope_pop: pope_accuracy" in rows[0]
    assert not any("no metric" in note for note in notes)
    assert rows[1][-1] == "64.0"


@pytest.mark.parametrize("task", ["pope", "pope_adv", "hiprune_tiny"])
@pytest.mark.parametrize(("accuracy", "f1"), [(1.0, None), (0.5, 0.0)])
def test_an_f1_of_no_yes_at_all_is_no_number(logs, tables, task, accuracy, f1):
    prefix, name = ("existence", "f1") if task == "hiprune_tiny" else ("pope", "f1_score")
    metrics = {f"{prefix}_accuracy,none": accuracy, f"{prefix}_{name},none": 0.0}
    logs.write(task, metrics, 64)
    logs.write(task, metrics | {f"{prefix}_{name},none": 0.5}, 128)
    ((rows, notes),) = tables()
    title = {"pope": "POPE", "hiprune_tiny": "existence F1"}.get(task, "pope_adv: pope_f1_score")
    cells = {row[0]: row[rows[0].index(title)] for row in rows[1:]}
    assert cells["64"] == ("–" if f1 is None else f"{0:.{4 if ':' in title else 1}f}")
    assert not any("no metric" in note for note in notes)


def test_letters_that_were_drawn_are_told(logs, tables):
    logs.write("mmbench_en_dev", {"gpt_eval_score,none": 50.0}, 64, drawn=3)
    ((_, notes),) = tables()
    assert any(n.startswith("Partly chance: `mmbench_en_dev` at 64 (3 answers).") for n in notes)


TINY = {
    "existence_accuracy": 0.9, "existence_f1": 0.875, "colour": 0.8, "shape": 0.7, "count": 0.5,
    "position": 0.4,
}  # fmt: skip


def test_one_task_fills_several_columns(logs, tables):
    logs.write("hiprune_tiny", {f"{name},none": v for name, v in TINY.items()}, checkpoint="t/tiny")
    half = {f"{name},none": value / 2 for name, value in TINY.items()}
    half["position,none"] = TINY["position"]
    logs.write("hiprune_tiny", half, 24, checkpoint="t/tiny")
    ((rows, notes),) = tables()
    titles = ["existence", "existence F1", "colour", "shape", "count", "position"]
    assert rows[0][2:] == [*titles, "mean", *LAST]
    mean = 100 * sum(v for name, v in TINY.items() if name != "existence_f1") / 5
    scores = [f"{100 * value:.1f}" for value in TINY.values()]
    assert rows[1] == ["unpruned", "ours", *scores, f"{mean:.1f}", "100.0", "5", "576.0"]
    # Four at 50 % and one at 100 %: F1, of the same answers as the accuracy, is not counted.
    assert rows[2][rows[0].index("avg %")] == "60.0"
    assert rows[2][rows[0].index("mean")] == f"{(mean + TINY['position'] * 20) / 2:.1f}"
    assert any("existence_f1" in note and "not in the averages" in note for note in notes)


@pytest.mark.parametrize(
    "metrics",
    [{"accuracy,none": 0.5}, {"pope_f1_score,none": None}, {"pope_f1_score,none": float("nan")}],
)
def test_results_without_the_metric_are_told_of(logs, tables, metrics):
    logs.write("pope", metrics, 64)
    logs.write("gqa", SCORES["gqa"][0], 64)
    ((rows, notes),) = tables()
    assert rows[0][2] == "GQA" and "POPE" not in rows[0]
    assert "Ran, but the results hold no metric of the task's columns: `pope`." in notes
