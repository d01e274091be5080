"""The three formats of one table: CSV that is read back, LaTeX that is escaped, Markdown."""

import csv
import io
import re
import shutil
import subprocess

import pytest
from table_logs import CHECKPOINT, Logs, in_the_csv

from scripts.tables.choice import NUMBERS, all_that_ran, chosen
from scripts.tables.render import FORMATS, HEADER, SPECIAL, escape
from scripts.tables.runs import read_tables
from scripts.tables.sheet import (
    DIFFERENCE,
    MARK,
    MISSING,
    OTHER,
    OURS,
    Heading,
    Row,
    cell_text,
    row_name,
)


@pytest.fixture
def runs(tmp_path):
    logs = Logs(tmp_path / "logs")
    logs.write_all(None, 192, 64)
    logs.write("pope", {"pope_f1_score,none": 0.123456}, 128)
    logs.write("pope", {"pope_f1_score,none": 0.5}, 192, limit=8.0)
    logs.write("my_task%", {"score,none": 1.5}, 24, checkpoint="me/tiny_one#2")
    return read_tables(logs.folder)


def test_csv_read_back(runs):
    sheets = all_that_ran(runs, others=True)
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](sheets))))
    assert tuple(lines[0]) == HEADER
    keys = [
        tuple(line[c] for c in ("table", "group", "row", "method", "column", "settings", "limit"))
        for line in lines
    ]
    assert len(set(keys)) == len(keys)  # one line for each number
    group = f"LLaVA-1.5-7B ({CHECKPOINT})"
    found = {key[2:5]: line for key, line in zip(keys, lines, strict=True) if key[1] == group}
    whole = {
        k[2:5]: line for k, line in zip(keys, lines, strict=True) if k[1] == group and not k[6]
    }
    pope = whole["128", "HiPrune", "POPE"]
    printed = in_the_csv("llava_1_5_7b.csv", tokens="128", method="HiPrune")
    assert float(pope["ours"]) == 12.3456  # not rounded
    assert float(pope["paper"]) == float(printed["POPE"])
    assert float(pope["difference"]) == pytest.approx(12.3456 - float(printed["POPE"]))
    assert pope["ours_measured_by"] == "lmms-eval 0.7.3 `pope`, `pope_f1_score` x 100"
    assert "most likely `pope_f1_score`" in pope["paper_measured_by"]
    assert pope["settings"] == "alpha = 0.1, object layer 9"
    gqa = whole["128", "HiPrune", "GQA"]
    assert (gqa["ours"], gqa["paper"], gqa["difference"]) == ("", printed["GQA"], "")
    assert whole["128", "HiPrune", "columns"]["ours"] == "1"
    fastv = in_the_csv("llava_1_5_7b.csv", tokens="64", method="FastV")
    line = found["64", "FastV", "MME"]
    assert (line["ours"], float(line["paper"])) == ("", float(fastv["MME"]))
    assert line["ours_measured_by"] == ""
    limited = [line for line in lines if line["limit"]]
    assert {line["limit"] for line in limited} == {"8"}
    assert {line["difference"] for line in limited} == {""}
    (own,) = (line for line in lines if line["column"] == "my_task%: score")
    assert (own["table"], own["ours"], own["paper"]) == ("", "1.5", "")


def test_csv_names_the_method(tmp_path):
    logs = Logs(tmp_path / "logs")
    pope = {"pope_f1_score,none": 0.5}
    variants = [{}, {"method": "random", "seed": 1}, {"method": "uniform"}, {"method": "cls"}]
    variants += [{"buffer": "row"}, {"score": "cls"}]
    for checkpoint in ("t/tiny", CHECKPOINT):
        logs.write("pope", pope, checkpoint=checkpoint)
        for variant in variants:
            logs.write("pope", pope, 192, checkpoint=checkpoint, variant=variant)
    sheets = all_that_ran(read_tables(logs.folder), others=True)
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](sheets))))
    lines = [line for line in lines if line["column"] == "POPE" and line["ours"]]
    assert {line["method"] for line in lines if line["row"] == "unpruned"} == {"unpruned"}
    found = {}
    for line in lines:
        if line["row"] != "unpruned":
            found.setdefault(line["method"], set()).add(line["title"].split(", ", 1)[-1])
    assert {name: found[name] for name in ("random", "uniform", "cls")} == {
        "random": {"method = random, seed = 1"},
        "uniform": {"method = uniform"},
        "cls": {"method = cls"},
    }
    # The ablations' variants and the paper's settings, in its tables and out of them.
    assert set(found) == {"random", "uniform", "cls", "HiPrune"}
    mine = {"tiny", "buffer = row", "score = cls"}
    assert {title for title in found["HiPrune"] if "LLaVA" not in title} == mine
    assert {line["table"] for line in lines} == {"2", "6", ""}
    assert {line["method"] for line in lines if line["table"] == "6"} == {"HiPrune"}


def test_titles_are_apart_in_all_formats(tmp_path):
    logs = Logs(tmp_path / "logs")
    for variant in ({}, {"method": "random", "seed": 1}, {"method": "random", "seed": 2}):
        logs.write("pope", {"pope_f1_score,none": 0.5}, 24, checkpoint="t/tiny", variant=variant)
    sheets = all_that_ran(read_tables(logs.folder))
    titles = ["tiny", "tiny, method = random, seed = 1", "tiny, method = random, seed = 2"]
    assert re.findall("^### (.*)", FORMATS["markdown"](sheets), re.M) == titles
    assert re.findall(r"caption\{(.*)\}", FORMATS["latex"](sheets)) == titles
    lines = csv.DictReader(io.StringIO(FORMATS["csv"](sheets)))
    assert list(dict.fromkeys(line["title"] for line in lines)) == titles


def test_marks_in_all_formats():
    """Of Table 7 one model's unpruned VizWiz is of test, as it seems, the other's is not."""
    (sheet,) = chosen("7", [], others=True)
    text = FORMATS["markdown"]([sheet])
    (remark,) = re.findall(f"^{MARK}: (.*)", text, re.M)
    assert remark == sheet.remark and "LLaVA-1.5-13B, 53.6," in remark and "up to 56.0" in remark
    latex = FORMATS["latex"]([sheet])
    assert rf"\dag{{}}: {escape(remark)}\par" in latex and MARK not in latex
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"]([sheet]))))
    noted = [line for line in lines if line["note"]]
    assert {line["note"] for line in noted} == {remark}
    # The mark stands once more before the remark itself.
    assert text.count(MARK) - 1 == latex.count(r"\dag{}") - 1 == len(noted)
    assert {line["group"] for line in noted} == {"LLaVA-1.5-13B (not run)"}
    assert {(line["row"], line["method"], line["column"]) for line in noted} == {
        ("unpruned", "unpruned", "VizWiz"),
        *((n, m, "avg %") for n in ("192", "128", "64") for m in ("HiPrune", "HiPrune++")),
    }


def test_every_cell_is_in_the_csv(runs):
    sheets = all_that_ran(runs, others=True)
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](sheets))))
    ours = sum(line["ours"] != "" for line in lines)
    paper = sum(line["paper"] != "" for line in lines)
    difference = sum(line["difference"] != "" for line in lines)
    rows = [row for sheet in sheets for block in sheet.blocks for row in block.rows]
    filled = {kind: 0 for kind in ("ours", "paper", "difference", "other")}
    for row in rows:
        filled[row.kind] += sum(cell is not None for cell in row.cells)
    assert (ours, difference) == (filled["ours"], filled["difference"])
    assert paper == filled["paper"] + filled["other"]


def test_latex_escapes(runs):
    text = FORMATS["latex"](all_that_ran(runs, others=True))
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert r"MMB\_CN" in body and r"avg \%" in body and r"tiny\_one\#2" in body
    assert r"my\_task\%" in body and r"\texttt{pope\_f1\_score}" in body
    assert not re.search(r"(?<!\\)[%#_$]", body)
    assert MISSING not in body and "`" not in body
    # As many cells in each row as the table has columns, but where one spans them all.
    for table in body.split(r"\begin{tabular}")[1:]:
        spec, *lines = table.split(r"\end{tabular}")[0].splitlines()
        rows = [line for line in lines if line.endswith(r"\\") and r"\multicolumn" not in line]
        assert len(rows) > 1
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(spec.strip("{}")) - 1}
        assert lines[0] == r"\toprule" and lines[-1] == r"\bottomrule"
    for name in ("table", "tabular"):
        assert body.count(rf"\begin{{{name}}}") == body.count(rf"\end{{{name}}}")


def test_characters_that_latex_reads():
    assert escape("100 % of a_b & c#d $1 {x} ~ ^ \\") == (
        r"100 \% of a\_b \& c\#d \$1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert escape("run `a_b --c` now") == r"run \texttt{a\_b --c} now"
    assert escape("one ` alone") == "one ` alone"
    assert set("&%$#_{}~^\\") <= set(SPECIAL)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(runs, tmp_path):
    sheets = all_that_ran(runs, others=True)
    sheets += [sheet for number in NUMBERS for sheet in chosen(number, [])]
    head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    pages = "\n".join(rf"{text}\clearpage" for text in map(lambda s: FORMATS["latex"]([s]), sheets))
    (tmp_path / "all.tex").write_text(f"{head}\n{pages}\n\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize(
    ("kind", "value", "digits", "text"),
    [
        (OURS, 59.14, 1, "59.1"),
        (OURS, 5, 0, "5"),
        (OURS, None, 1, MISSING),
        (DIFFERENCE, 0.26, 1, "+0.3"),
        (DIFFERENCE, -0.04, 1, "+0.0"),  # no "-0.0"
        (DIFFERENCE, -0.06, 1, "-0.1"),
        (DIFFERENCE, 5, 0, "5"),  # how many columns, also under a difference
    ],
)
def test_cells(kind, value, digits, text):
    assert cell_text(Row(kind, kind, (value,)), 0, Heading("x", digits)) == text
    marked = cell_text(Row(kind, kind, (1.0, value), frozenset({1})), 1, Heading("x", digits))
    assert marked == f"{text}{MARK}"


def test_other_methods_are_the_papers():
    assert row_name(Row(OTHER, "FastV", ())) == "FastV (paper)"
