"""The task of --tiny: its scores, its data, and when it is made anew."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from scripts.benchmarks import BENCHMARKS
from scripts.tiny import task as tiny
from scripts.tiny import tiny_task
from scripts.tiny.questions import KINDS
from scripts.tiny.scenes import DRAWINGS, make_scene
from scripts.tiny.task import METRICS, make_task, questions

ROOT = Path(__file__).resolve().parents[1]


def entry(kind: str, answer: str, right: str) -> tuple[str, str, str]:
    """What lmms-eval hands from one question to each metric's aggregation."""
    found = tiny_task.process_results({"kind": kind, "answer": right}, [answer])
    assert set(found) == set(METRICS)
    (only,) = set(found.values())
    return only


@pytest.mark.parametrize("answer", ["Yes", "yes", " Yes.", "YES.\n"])
def test_case_space_and_full_stop_do_not_matter(answer):
    assert entry("existence", answer, "Yes") == ("existence", "yes", "yes")
    assert tiny_task.existence_accuracy([entry("existence", answer, "Yes")]) == 1


@pytest.mark.parametrize("answer", ["Yes it is", "", "No", "Ye", "Yes, red"])
def test_another_answer_is_wrong(answer):
    assert tiny_task.existence_accuracy([entry("existence", answer, "Yes")]) == 0


def test_accuracy_and_f1_of_existence_by_hand():
    asked = [
        ("yes", "yes"), ("yes", "yes"), ("no", "yes"), ("red", "yes"),  # 2 of 4 are found
        ("yes", "no"), ("no", "no"), ("no", "no"), ("red", "no"), ("no", "no"),  # one is too many
    ]  # fmt: skip
    entries = [entry("existence", *one) for one in asked]
    assert tiny_task.existence_accuracy(entries) == 5 / 9
    precision, recall = 2 / 3, 2 / 4
    expected = 2 * precision * recall / (precision + recall)
    assert tiny_task.existence_f1(entries) == pytest.approx(expected)
    assert tiny_task.existence_f1([entry("existence", "no", "no")]) == 0


def test_existence_is_counted_as_lmms_evals_pope_counts():
    pope = pytest.importorskip("lmms_eval.tasks.pope.utils")
    draw = random.Random(0)
    asked = [(draw.choice(("yes", "no", "no")), draw.choice(("yes", "no"))) for _ in range(60)]
    entries = [entry("existence", *one) for one in asked]
    theirs = [
        pope.pope_process_results({"answer": right, "question_id": 0}, [answer])["pope_f1_score"]
        for answer, right in asked
    ]
    f1, accuracy = pope.pope_aggregate_f1_score(theirs), pope.pope_aggregate_accuracy(theirs)
    assert 0 < f1 < 1
    assert tiny_task.existence_f1(entries) == pytest.approx(f1)
    assert tiny_task.existence_accuracy(entries) == pytest.approx(accuracy)


def test_kinds_are_kept_apart():
    """A share of its own for each, of a number of questions of its own."""
    right = {"existence": (1, 2), "colour": (2, 3), "shape": (3, 4), "count": (4, 5)}
    right["position"] = (5, 6)
    entries = [
        entry(kind, "yes" if index < hits else "no", "yes")
        for kind, (hits, asked) in right.items()
        for index in range(asked)
    ]
    random.Random(0).shuffle(entries)
    for kind, (hits, asked) in right.items():
        name = "existence_accuracy" if kind == "existence" else kind
        assert getattr(tiny_task, name)(entries) == hits / asked
    others = [one for one in entries if one[0] != "existence"]
    assert tiny_task.existence_f1(others) == 0
    assert math.isnan(tiny_task.colour([one for one in entries if one[0] != "colour"]))


def rows(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "hiprune_tiny.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file; the data's own place left out of its text."""
    return {
        str(file.relative_to(folder)): file.read_bytes().replace(str(folder).encode(), b"HERE")
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_task(tmp_path_factory.mktemp("task"), "llava", scenes=3, seed=7)


def test_every_scene_has_a_question_of_each_kind(folder):
    found = rows(folder)
    assert [row["kind"] for row in found] == [*KINDS] * 3
    assert [row["question_id"] for row in found] == [f"{i}-{k}" for i in range(3) for k in range(5)]
    assert sorted({row["image"] for row in found}) == [
        str(folder / "images" / f"000{index}.png") for index in range(3)
    ]
    for row in found:
        assert row["question"].endswith("?") and row["answer"].istitle()


def test_the_pictures_are_the_scenes(folder):
    drawing = DRAWINGS["llava"]
    for index in range(3):
        scene = make_scene(7, index, drawing.side, drawing.sizes)
        (picture,) = tiny_task.doc_to_visual(rows(folder)[5 * index])
        assert picture.mode == "RGB" and picture.tobytes() == scene.image.tobytes()


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    assert contents(make_task(tmp_path / "again", "llava", scenes=3, seed=7)) == contents(folder)
    other = contents(make_task(tmp_path / "other", "llava", scenes=3, seed=8))
    assert other.keys() == contents(folder).keys()
    same = [name for name, content in contents(folder).items() if other[name] == content]
    assert sorted(same) == ["hiprune_tiny.yaml", "tiny_task.py"]


@pytest.mark.parametrize("family", DRAWINGS)
def test_each_family_has_scenes_of_its_own_size(family, tmp_path):
    first = next(iter(questions(family, 1, 7, tmp_path)))
    with Image.open(first["image"]) as picture:
        assert picture.size == (DRAWINGS[family].side,) * 2


def test_families_differ_where_their_drawings_do(tmp_path):
    found = {}
    for family in DRAWINGS:
        asked = list(questions(family, 2, 7, tmp_path))
        found[family] = [(row["question"], row["answer"]) for row in asked]
    assert found["llava"] == found["qwen2_5_vl"]  # the same scenes, twice as large
    assert found["llava"] != found["llava_next"]  # smaller things, so that more find a place


def test_the_task_is_one_that_lmms_eval_reads(folder):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    task = yaml.load((folder / "hiprune_tiny.yaml").read_text(), Loader)
    assert task["task"] == "hiprune_tiny"
    assert task["dataset_kwargs"]["data_files"] == {"test": str(folder / "hiprune_tiny.jsonl")}
    assert tuple(one["metric"] for one in task["metric_list"]) == METRICS
    named = [task[name] for name in ("doc_to_visual", "doc_to_text", "process_results")]
    named += [one["aggregation"] for one in task["metric_list"]]
    for name in named:
        module, function = name.split(".")
        assert module == "tiny_task" and callable(getattr(tiny_task, function))
    copy = (folder / "tiny_task.py").read_bytes()
    assert copy == (ROOT / "scripts" / "tiny" / "tiny_task.py").read_bytes()


def test_from_the_command_line(tmp_path):
    command = [sys.executable, str(ROOT / "scripts"), "tiny.task", "--scenes", "1"]
    command += ["--family", "qwen2_5_vl", "--output", str(tmp_path / "task"), "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["include_path"] == str(tmp_path / "task")
    assert len(rows(tmp_path / "task")) == 5


@pytest.fixture
def making(tmp_path):
    """Make ``made`` of two files; how often it has been made."""
    sources = [tmp_path / "a.py", tmp_path / "b.py"]
    for source in sources:
        source.write_text("1")
    calls = []

    def call(place="made", fail=False):
        def make(path):
            calls.append(path)
            path.mkdir(exist_ok=True)
            if fail:
                raise KeyboardInterrupt

        tiny._make(tmp_path / place, sources, make)
        return len(calls)

    call.sources = sources
    return call


def test_what_is_complete_is_kept(making, capsys):
    assert (making(), making()) == (1, 1)
    assert capsys.readouterr().out.count("making ") == 1
    making.sources.reverse()
    assert making() == 1


def test_it_is_made_anew_when_a_source_has_changed(making):
    making()
    making.sources[1].write_text("2")
    assert (making(), making()) == (2, 2)


def test_it_is_made_anew_at_another_place(making, tmp_path):
    """The files hold their place."""
    making()
    (tmp_path / "made").rename(tmp_path / "moved")
    assert (making("moved"), making("moved")) == (2, 2)


def test_what_was_cut_off_is_made_anew(making):
    with pytest.raises(KeyboardInterrupt):
        making(fail=True)
    assert making() == 2
    making.sources[0].write_text("2")
    with pytest.raises(KeyboardInterrupt):
        making(fail=True)
    making.sources[0].write_text("1")  # as when it was complete; what lies there is not
    assert making() == 4


@pytest.mark.parametrize("family", BENCHMARKS)
def test_what_each_benchmark_needs(family, monkeypatch):
    made = {}
    monkeypatch.setattr(tiny, "_make", lambda path, sources, make: made.update({path: sources}))
    benchmark = BENCHMARKS[family]
    tiny.make_checkpoint(benchmark.tiny)
    tiny.make_tiny_task(benchmark.tiny)
    assert ROOT / ".tiny" / "tasks" / benchmark.family in made
    asset = ROOT / "assets" / benchmark.tiny.asset
    if family in ("llava", "llava_next"):  # of all that is converted; a new card changes nothing
        sources = set(made[benchmark.tiny.checkpoint])
        needed = ("config.json", "model.safetensors", "tokenizer.model")
        assert {asset / name for name in needed} < sources
        assert not {asset / "README.md", asset / "curve.jsonl"} & sources
    else:
        assert benchmark.tiny.checkpoint == asset and len(made) == 1
    assert all(source.is_file() for sources in made.values() for source in sources)
