"""flops.py from the command line."""

from __future__ import annotations

import json
import runpy
import subprocess
from pathlib import Path

import pytest
import transformers
from forking_python import command, serving_here
from program import run_for_no_reader

from scripts.efficiency.architectures import ARCHITECTURES
from scripts.efficiency.flops.cli import read_settings
from scripts.efficiency.flops.conventions import CONVENTIONS

FLOPS = Path(__file__).resolve().parents[1] / "flops.py"
OWN_MODELS = int(transformers.__version__.split(".")[0]) >= 5  # transformers' own, Qwen among them
needs_own = pytest.mark.skipif(not OWN_MODELS, reason="models of transformers 5")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "llava"], ["--model='llava'", "llava-1.5-7b, llava-1.5-13b"]),
        (["--model", "llava-1.5-7b,"], ["--model=''"]),
        (["--convention", "mac"], ["--convention='mac'", "paper, fastv, executed"]),
        (["--retention", "0"], ["--retention='0'", "from 1 to 576", "(0, 1]"]),
        (["--retention", "577"], ["--retention='577'", "from 1 to 576"]),
        (["--retention", "1.5"], ["--retention='1.5'"]),
        (["--retention", "0.0"], ["--retention='0.0'"]),
        (["--retention", "64,abc"], ["--retention='abc'"]),
        (["--retention", "1e2"], ["--retention='1e2'"]),
        (["--retention", "-1"], ["--retention"]),
        (["--model", "llava-next-7b", "--retention", "4"], ["from 5 to 2880", "each of the 5"]),
        (["--model", "llava-next-7b", "--retention", "0.001"], ["--retention='0.001'"]),
        (["--text-tokens", "-1"], ["--text-tokens='-1'", "from 0 to"]),
        (["--text-tokens", "4.0"], ["--text-tokens='4.0'"]),
        (["--text-tokens", "3521"], ["--text-tokens=3521", "from 0 to 3520"]),
        (["--image-size", "896"], ["--image-size='896'", "WxH"]),
        (["--image-size", "0x896"], ["--image-size='0x896'"]),
        (["--passes", "3"], ["--passes='3'", "from 1 to 2"]),
        (["--json", "no/such/folder/f.json"], ["--json='no/such/folder/f.json'", "folder"]),
    ],
)
def test_wrong_arguments(arguments, named, capsys):
    with pytest.raises(SystemExit) as stop:
        read_settings(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "expected" in message
    assert all(part in message for part in named), message


@needs_own
def test_aspect_ratio_that_the_processor_refuses(capsys):
    with pytest.raises(SystemExit) as stop:
        read_settings(["--model", "qwen2.5-vl-3b", "--image-size", "10000x10"])
    assert stop.value.code == 2
    assert "--image-size='10000x10'" in capsys.readouterr().err


@pytest.mark.skipif(OWN_MODELS, reason="Qwen2.5-VL can be counted here")
def test_qwen_needs_newer_transformers(capsys):
    settings = read_settings([])
    families = [subject.architecture.family for subject in settings.subjects]
    assert families == ["llava", "llava", "llava_next"]
    own = {name for name, architecture in ARCHITECTURES.items() if architecture.needs_own}
    assert set(settings.left_out) == own and len(own) == 6
    with pytest.raises(SystemExit) as stop:
        read_settings(["--model", "llava-1.5-7b,qwen2.5-vl-3b"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "--model='qwen2.5-vl-3b'" in message
    assert "transformers >= 5.17" in message and "bash setup_qwen.sh" in message


def test_lists_may_be_repeated_and_separated_by_commas():
    settings = read_settings(
        ["--model", "llava-1.5-13b,llava-1.5-7b", "--model", "llava-1.5-7b", "--retention", "1,1."]
    )
    names = [subject.architecture.name for subject in settings.subjects]
    assert names == ["llava-1.5-13b", "llava-1.5-7b"]
    assert settings.subjects[0].retentions == (1, 1.0)
    assert [settings.subjects[0].kept(share) for share in (1, 1.0)] == [1, 576]


def test_runs_from_another_folder_and_prints_json(tmp_path):
    arguments = ["--model", "llava-1.5-7b", "--retention", "192", "--json"]
    with serving_here() as place:
        line = [*command(place), str(FLOPS), *arguments]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["command"] == "python flops.py " + " ".join(arguments)
    assert found["versions"]["transformers"] == transformers.__version__
    assert {"Python", "torch", "fvcore", "hiprune"} < set(found["versions"])
    assert (found["text_tokens"], found["scoring_passes"]) == (49, 2)
    tables = found["models"]["llava-1.5-7b"]["conventions"]
    assert {name: part["unit"] for name, part in tables.items()} == {
        name: convention.unit for name, convention in CONVENTIONS.items()
    }
    base, row = tables["paper"]["rows"]
    assert (base["retention"], row["retention"], row["visual_tokens"]) == ("unpruned", 192, 192)
    assert (row["paper_total_T"], row["scoring"]) == (3.56, None)
    assert row["total"] == row["vision"] + row["projector"] + row["llm"]
    assert row["reduction_percent"] == pytest.approx(100 * (1 - row["total"] / base["total"]))


def test_writes_json_beside_the_tables(tmp_path, capsys):
    place = tmp_path / "found.json"
    arguments = ["--model", "llava-1.5-7b", "--convention", "paper", "--json"]
    main = runpy.run_path(str(FLOPS))["main"]
    assert main([*arguments, str(place)]) == 0
    assert "| 8.632 |" in capsys.readouterr().out
    assert list(json.loads(place.read_text())["models"]) == ["llava-1.5-7b"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, str(tmp_path)])
    assert stop.value.code == 2
    assert f"--json={str(tmp_path)!r}" in capsys.readouterr().err


def test_a_reader_that_stops_early():
    assert run_for_no_reader(FLOPS, "--model", "llava-1.5-7b", "--json", "-") == (0, "")
