"""Tables in the paper's layouts: which are made, what is compared with what, and over what."""

import csv

import pytest
from table_logs import (
    CHECKPOINT,
    ROOT,
    TITLES,
    Logs,
    in_the_csv,
    numbers,
    parse_markdown,
    read,
    rows_of,
    titles,
)
from table_logs import SCORES as OURS

from scripts.benchmarks import BENCHMARKS
from scripts.tables import ablations as ablation_settings
from scripts.tables.__main__ import parse
from scripts.tables.choice import NUMBERS, all_that_ran, chosen
from scripts.tables.notes import LMMS_EVAL, PAPER_MEASURES
from scripts.tables.paper import ALPHA, OBJECT_LAYERS, SCORES, TABLES, UNPRUNED, paper_rows
from scripts.tables.render import FORMATS
from scripts.tables.runs import read_tables
from scripts.tables.sheet import MISSING

TABLE_2 = ["GQA", "MMB", "MMB_CN", "MME", "POPE", "SQA_IMG", "VQAv2", "TextVQA", "VizWiz"]


PAPERS = {"llava": 9, "llava_next": 9, "qwen2_5_vl": 16}  # l, as the paper says it


@pytest.fixture
def logs(tmp_path):
    return Logs(tmp_path / "logs")


def test_the_papers_settings_are_the_packages_defaults():
    assert ALPHA == 0.1
    assert {model.family for table in TABLES.values() for model in table.models} == set(PAPERS)
    assert {name: OBJECT_LAYERS[name] for name in PAPERS} == PAPERS
    for name, benchmark in BENCHMARKS.items():
        budgets = [UNPRUNED, *benchmark.retentions]
        assert list(paper_rows(benchmark.checkpoint)) == budgets, name
    assert set(PAPER_MEASURES) == set(SCORES)
    for name in ("llava", "qwen"):
        assert f"\nlmms-eval=={LMMS_EVAL} " in (ROOT / f"scripts/env/{name}.lock").read_text()


@pytest.mark.parametrize("number", TABLES)
def test_the_papers_averages_come_out(number):
    """Recomputed from the paper's own cells, of every row and method, as its CSV file has them."""
    (sheet,) = chosen(number, [], others=True)
    rows = rows_of(sheet)
    file = ROOT / "results" / "paper" / TABLES[number].file
    printed = list(csv.DictReader(file.open(newline="", encoding="utf-8")))
    printed = [row for row in printed if row.get("version", "v3") != "v2"]
    checked = 0
    for row in printed:
        kind = (
            "paper" if row["method"] == "HiPrune" or "vanilla" in row["method"] else row["method"]
        )
        budget = row.get("tokens") or {"33.3": "0.334", "22.2": "0.223", "11.1": "0.112"}.get(
            row["retain_%"], f"0.0{row['retain_%'].replace('.', '')}"
        )
        budget = UNPRUNED if "vanilla" in row["method"] else budget
        model = row.get("model", "")
        (found,) = (
            cells
            for (group, label, name), cells in rows.items()
            if (label, name) == (budget, kind) and model in group
        )
        assert {t: found[t] for t in TABLES[number].columns if found[t] is not None} == numbers(
            row, TABLES[number].columns
        )
        assert found["columns"] == len(numbers(row, TABLES[number].columns))
        recomputed = float(row.get("avg_recomputed_%") or row["avg_derived_%"])
        if number == "2":  # the average that the paper prints takes VizWiz of test-dev
            assert found["avg %, VizWiz of 50.0"] == pytest.approx(recomputed, abs=0.006)
            recomputed = float(row["avg_if_VizWiz_baseline_54.3_%"] or recomputed)
        assert found["avg %"] == pytest.approx(recomputed, abs=0.006)
        if "avg_printed_%" in row:
            assert found["printed avg %"] == float(row["avg_printed_%"])
        checked += 1
    assert (
        checked
        == len(printed)
        == sum(1 for _, _, name in rows if name not in ("ours", "difference"))
    )


def test_the_layout_where_nothing_has_run():
    (sheet,) = chosen("2", [])
    ((rows, notes),) = read([sheet])
    assert rows[0][2 : 2 + len(TABLE_2)] == TABLE_2
    labels = [row[0] for row in rows[1:] if row[1] == "ours"]
    assert labels == ["unpruned", "192", "128", "64"]
    assert [row[1] for row in rows[1:]] == ["ours", "paper", "difference"] * 4
    for row in rows[1:]:
        if row[1] != "paper":
            assert set(row[2:]) == {MISSING}
    assert any("not run" in note and "`bash bench_llava.sh`" in note for note in notes)


@pytest.mark.parametrize("number", NUMBERS)
def test_every_table_can_be_asked_for(number):
    (sheet,) = chosen(number, [])
    assert sheet.number == number
    ((_, notes),) = read([sheet])
    note = next(note for note in notes if note.startswith(MISSING))
    commands = note.split("`")[1::2]
    assert commands, note
    for command in commands:  # what it says to run is there
        script = command.split("bash ")[1].split()[0]
        assert (ROOT / script).is_file()
    measured = [note for note in notes if note.startswith("- ") and ", ours: " in note]
    columns = ["GQA", "MME", "POPE", "VizWiz"] if number in ("6", "11") else TABLES[number].columns
    assert [line[2:].split(",")[0] for line in measured] == columns
    assert all(". Paper: " in line for line in measured)


def test_ours_beside_the_papers(logs):
    logs.write_all(None, 192)
    (sheet,) = chosen("2", read_tables(logs.folder))
    rows = rows_of(sheet)
    group = f"LLaVA-1.5-7B ({CHECKPOINT})"
    ours, paper, difference = (rows[group, "192", kind] for kind in ("ours", "paper", "difference"))
    theirs = numbers(in_the_csv("llava_1_5_7b.csv", tokens="192", method="HiPrune"), TABLE_2)
    full = numbers(in_the_csv("llava_1_5_7b.csv", tokens="576"), TABLE_2)
    mine = {"GQA": 59.14, "MME": 1814.75, "POPE": 86.12, "SQA_IMG": 68.86, "VizWiz": 54.5}
    for title in TABLE_2:
        assert paper[title] == theirs[title]
        expected = None if title not in mine else mine[title] - theirs[title]
        assert ours[title] == pytest.approx(mine.get(title))
        assert difference[title] == pytest.approx(expected)
    # Both over the five columns that ours has: the paper's nine would be another number.
    assert ours["columns"] == paper["columns"] == difference["columns"] == 5
    on_val = [theirs[t] / (54.3 if t == "VizWiz" else full[t]) for t in TITLES]
    on_test = [theirs[t] / full[t] for t in TITLES]
    assert ours["avg %"] == pytest.approx(100)
    assert paper["avg %"] == pytest.approx(100 * sum(on_val) / 5)
    assert difference["avg %"] == pytest.approx(100 - 100 * sum(on_val) / 5)
    second = "avg %, VizWiz of 50.0"
    assert ours[second] == pytest.approx((4 + 54.5 / 50) * 100 / 5)
    assert paper[second] == pytest.approx(100 * sum(on_test) / 5)
    assert paper["printed avg %"] == 99.3
    # Of test-dev and of val: two things.
    assert rows[group, "unpruned", "difference"]["VizWiz"] is None
    assert (
        rows[group, "unpruned", "paper"]["avg %"] == rows[group, "unpruned", "ours"][second] == 100
    )


def test_several_models_in_one_table(logs):
    """Table 7 has the 13B of two families, each with its own budgets and its unpruned row."""
    for checkpoint, budget in (("x/llava-v1.5-13b", 192), ("y/llava-v1.6-vicuna-13b", 640)):
        logs.write("pope", {"pope_f1_score,none": 0.5}, checkpoint=checkpoint)
        logs.write("pope", {"pope_f1_score,none": budget / 1000}, budget, checkpoint=checkpoint)
    (sheet,) = all_that_ran(read_tables(logs.folder))
    assert titles([sheet]) == [("7", "LLaVA-1.5-13B, LLaVA-NeXT-13B", None)]
    rows = rows_of(sheet)
    groups = ["LLaVA-1.5-13B (x/llava-v1.5-13b)", "LLaVA-NeXT-13B (y/llava-v1.6-vicuna-13b)"]
    assert sheet.groups == groups
    for group, model, budget in zip(groups, ("1.5", "NeXT"), (192, 640), strict=True):
        row = in_the_csv(
            "llava_13b.csv", model=f"LLaVA-{model}-13B", tokens=str(budget), method="HiPrune"
        )
        difference = rows[group, str(budget), "difference"]["POPE"]
        assert difference == pytest.approx(budget / 10 - float(row["POPE"]))
        assert rows[group, str(budget), "ours"]["avg %"] == pytest.approx(budget / 5)
    ((cells, _),) = read([sheet])
    assert [row[0] for row in cells if row[0].startswith("**")] == [f"**{g}**" for g in groups]


def test_two_checkpoints_of_one_model_and_budgets_of_ones_own(logs):
    logs.write("pope", OURS["pope"][0], 100)
    logs.write("other_task", {"score,none": 2.5}, 192)
    logs.write("pope", OURS["pope"][0], 192, checkpoint="llava-hf/llava-1.5-7b-hf")
    (sheet,) = all_that_ran(read_tables(logs.folder))
    assert sheet.groups == [f"LLaVA-1.5-7B ({c})" for c in (CHECKPOINT, "llava-hf/llava-1.5-7b-hf")]
    rows = rows_of(sheet)
    first = [label for group, label, kind in rows if group == sheet.groups[0] and kind == "ours"]
    assert first == ["unpruned", "192", "128", "100", "64"]
    assert (sheet.groups[0], "100", "paper") not in rows
    assert rows[sheet.groups[0], "192", "ours"]["other_task: score"] == 2.5
    assert rows[sheet.groups[0], "192", "paper"]["other_task: score"] is None
    ((_, notes),) = read([sheet])
    (note,) = (note for note in notes if note.startswith(MISSING))
    assert "`bash bench_llava.sh`" in note and "`bash bench_llava.sh --hf`" in note


def test_which_tables_are_made(logs):
    """Each of the paper's that shows what none before it does; what is left is plain."""
    small = {"checkpoint": "Qwen/Qwen2.5-VL-3B-Instruct", "object_layer": 16}
    logs.write("pope", OURS["pope"][0], 0.334, **small)
    assert titles(all_that_ran(read_tables(logs.folder))) == [
        ("4", "Qwen2.5-VL-3B (Qwen/Qwen2.5-VL-3B-Instruct)", None)
    ]
    logs.write("gqa", OURS["gqa"][0], 0.334, **small)  # Table 8 has it, Table 4 has not
    logs.write("pope", OURS["pope"][0], 192, alpha=0.25)
    logs.write("pope", OURS["pope"][0], 192)
    logs.write("pope", OURS["pope"][0], 24, checkpoint="t/tiny")
    sheets = all_that_ran(read_tables(logs.folder))
    assert [number for number, _, _ in titles(sheets)] == ["2", "4", "8", "", ""]
    assert {sheet.settings for sheet in sheets[3:]} == {
        "alpha = 0.25, object layer 9", "alpha = 0.1, object layer 9",
    }  # fmt: skip
    assert "GQA" not in [heading.title for heading in sheets[1].headings]


def test_the_ablations(logs):
    logs.write_all(192)
    assert [sheet.number for sheet in all_that_ran(read_tables(logs.folder))] == ["2"]
    logs.write("pope", {"pope_f1_score,none": 0.43}, 192, variant={"registers": False})
    logs.write("pope", {"pope_f1_score,none": 0.43}, 192, variant={"score": "cls"})
    logs.write("pope", {"pope_f1_score,none": 0.43}, 192, alpha=0.0)
    logs.write("pope", {"pope_f1_score,none": 0.43}, 192, alpha=0.3)  # of the sweeps
    sheets = all_that_ran(read_tables(logs.folder))
    assert [sheet.number for sheet in sheets] == ["2", "6", ""]
    assert sheets[2].settings == "alpha = 0.3, object layer 9"
    rows = rows_of(sheets[1])
    wanted = [t for t in ablation_settings.TABLES if t.number.startswith("6")]
    assert [label for _, label, kind in rows if kind == "ours"] == [
        row.title for table in wanted for row in table.rows
    ]
    default = rows["6b: kinds of tokens", "all, default", "ours"]
    assert default["columns"] == 4 and default["avg %"] == 100
    row = "6b: kinds of tokens", "without registers"
    printed = in_the_csv("ablations_llava_1_5_7b_192.csv", setting="w/o Register")
    assert rows[(*row, "ours")]["avg %"] == pytest.approx(100 * 43 / 86.12)
    assert rows[(*row, "paper")]["avg %"] == pytest.approx(100 * float(printed["POPE"]) / 86.1)
    assert rows[(*row, "difference")]["POPE"] == pytest.approx(43 - float(printed["POPE"]))
    assert rows[(*row, "paper")]["printed avg %"] == float(printed["avg_printed_%(vs default)"])
    # Where ours has not run, the paper's average is over its four columns.
    square = rows["6c: buffers", "square (8)", "paper"]
    assert (square["columns"], round(square["avg %"], 2)) == (4, 99.97)
    assert rows["6c: buffers", "square (8)", "ours"]["POPE"] is None


def test_each_tables_unpruned_row_is_of_its_own_checkpoint(logs):
    """The unpruned row of a checkpoint serves all its settings, of the paper's table too."""
    logs.write("pope", {"pope_f1_score,none": 0.5})
    logs.write("pope", {"pope_f1_score,none": 0.25}, 192, alpha=0.5)
    logs.write("pope", {"pope_f1_score,none": 0.9}, checkpoint="llava-hf/llava-1.5-7b-hf")
    (sheet,) = chosen("2", read_tables(logs.folder))
    rows = rows_of(sheet)
    assert rows[sheet.groups[0], "unpruned", "ours"]["POPE"] == 50
    assert rows[sheet.groups[0], "192", "ours"]["POPE"] is None  # of another alpha
    assert rows[sheet.groups[1], "unpruned", "ours"]["POPE"] == 90


def test_columns_are_told_of_once(logs):
    """Of many tables of other settings, as a sweep makes them, only the first explains POPE."""
    for layer in (1, 5, 9):
        logs.write("pope", OURS["pope"][0], 192, object_layer=layer)
    logs.write("gqa", OURS["gqa"][0], 192, object_layer=5)
    text = FORMATS["markdown"](all_that_ran(read_tables(logs.folder)))
    assert text.count("- POPE, ours: ") == text.count("- GQA, ours: ") == 1
    assert len(parse_markdown(text)) == 3


def test_help_names_the_tables(monkeypatch, capsys):
    import argparse

    monkeypatch.setattr("sys.argv", ["make_tables.py", "--help"])
    with pytest.raises(SystemExit):
        parse(argparse.ArgumentParser())
    assert "{2,3,4,6,7,8,10,11,auto}" in capsys.readouterr().out


def test_hiprune_pp_stands_beside_the_papers_rows_of_it(logs):
    logs.write_all(None, 192)
    assert len(chosen("2", read_tables(logs.folder))) == 1
    logs.write_all(192, variant={"method": "hiprune_pp"})
    logs.write_all(192, variant={"method": "hiprune_pp", "hiprune_pp_sign": "-"})
    runs = read_tables(logs.folder)
    ours, plus = chosen("2", runs)
    assert (ours.method, plus.method) == ("HiPrune", "HiPrune++")
    assert plus.title.endswith(": HiPrune++")
    for sheet in (ours, plus):
        column = [heading.title for heading in sheet.headings].index("GQA")
        (block,) = (block for block in sheet.blocks if str(block.label) == "192")
        paper = in_the_csv("llava_1_5_7b.csv", tokens="192", method=sheet.method)
        found = {row.kind: row.cells[column] for row in block.rows}
        assert found["paper"] == float(paper["GQA"])
        assert found["ours"] == pytest.approx(plus.blocks[0].rows[0].cells[column])
    # Shown once, but for the run with another sign, which is no row of the paper's.
    assert [sheet.method for sheet in all_that_ran(runs)] == ["HiPrune", "HiPrune++", "hiprune_pp"]
