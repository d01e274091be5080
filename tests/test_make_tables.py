"""make_tables.py from the command line: formats, early readers, what is refused."""

import subprocess

import pytest
from forking_python import command, serving_here
from program import run_for_no_reader, run_here
from table_logs import (
    ROOT,
    Logs,
    parse_markdown,
)

from scripts.tables.layouts import render
from scripts.tables.runs import read_tables

MAKE_TABLES = ROOT / "scripts" / "make_tables.py"


@pytest.fixture
def logs(tmp_path):
    return Logs(tmp_path / "logs")


def test_from_the_command_line(logs, tmp_path):
    logs.write("pope", {"pope_f1_score,none": 0.6}, 64, checkpoint="me/mine")
    logs.write("pope", {"pope_f1_score,none": 0.6}, 320, checkpoint="x/llava-v1.6-vicuna-7b")
    with serving_here() as place:
        line = [*command(place), MAKE_TABLES, logs.folder]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    (_, first), (_, second) = parse_markdown(done.stdout)
    assert first[0] == "### Table 3: LLaVA-NeXT-7B (x/llava-v1.6-vicuna-7b)"
    mine = next(t for t in read_tables(logs.folder) if t.checkpoint == "me/mine")
    assert second[0] == "### mine" and done.stdout.endswith(f"\n\n{render(mine)}\n")
    file = tmp_path / "all.md"
    again = run_here(MAKE_TABLES, logs.folder, "--output", file)
    assert (again.returncode, again.stdout, file.read_text()) == (0, "", done.stdout)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "empty"),
        (b'{"results": {', "not whole JSON"),
        (b"\xff\xfe{}", "no UTF-8 text"),
        (b'{"results": {}, "config": {}}', "no 'date' in it"),
    ],
)
def test_a_bad_file_is_named_and_the_other_tables_come(logs, text, reason):
    logs.write("pope", {"pope_f1_score,none": 0.6}, 64, checkpoint="me/mine")
    file = logs.folder / "elsewhere" / "2026_results.json"
    file.parent.mkdir()
    file.write_bytes(text)
    (logs.folder / "runs.jsonl").write_bytes(text + b"\n" if text else b"x\n")
    done = run_here(MAKE_TABLES, logs.folder)
    assert done.returncode == 0
    assert parse_markdown(done.stdout)[0][1][0] == "### mine"
    first, second = done.stderr.splitlines()
    assert first.startswith(f"left out: {file}: {reason}")
    assert second.startswith(f"left out: {logs.folder}/runs.jsonl, line 1: ")


def test_a_reader_that_stops_early(logs):
    logs.write("pope", {"pope_f1_score,none": 0.6}, 64)
    assert run_for_no_reader(MAKE_TABLES, logs.folder) == (0, "")


def test_a_folder_without_results(tmp_path):
    for folder, message in [("none", "no such folder"), ("empty", "holds no finished run")]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        done = run_here(MAKE_TABLES, tmp_path / folder)
        assert done.returncode == 2
        assert f"logs={str(tmp_path / folder)!r}: {message}" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "5"], "argument --table: invalid choice: '5' (choose from"),
        (["--format", "html"], "argument --format: invalid choice: 'html' (choose from"),
        (["--output", "no/such/file.md"], "output='no/such/file.md': expected a file in"),
        (["--output", "."], "output='.': expected a file in a folder that exists"),
    ],
)
def test_arguments_that_are_refused(logs, arguments, message):
    done = run_here(MAKE_TABLES, logs.folder, *arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
