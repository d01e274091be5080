"""Vinoground, the paper's video benchmark: its columns, and Video-LLaVA asked about a video."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="needs the environment .venv-qwen")

from bench_in_process import bench_here
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.models import get_model
from random_checkpoint import make_checkpoint
from table_logs import Logs, parse_markdown
from test_lmms_hf import asking, video
from test_lmms_qwen import DOCS, TASK

from hiprune import HiPruneError
from scripts.bench import registry
from scripts.tables.layouts import render
from scripts.tables.runs import read_tables

SCORE = "vinoground_score,none"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("video") / "video-llava", "video_llava")


def test_its_three_scores_are_columns(tmp_path):
    """Text, video and both, of a record made by hand; the third is of the same answers."""
    logs = Logs(tmp_path / "logs")
    here = {"checkpoint": "LanguageBind/Video-LLaVA-7B-hf"}
    logs.write("vinoground", {SCORE: [24.0, 26.0, 6.5]}, tokens=2056.0, **here)
    logs.write("vinoground", {SCORE: [18.0, 13.0, 4.25]}, 85, tokens=688.0, **here)
    ((rows, notes),) = (parse_markdown(render(table))[0] for table in read_tables(logs.folder))
    assert rows == [
        ["tokens", "", "Vinoground text", "Vinoground video", "Vinoground group",
         "avg %", "columns", "tokens in the LLM"],
        ["unpruned", "ours", "24.0", "26.0", "6.5", "100.0", "2", "2056.0"],
        ["85", "ours", "18.0", "13.0", "4.2", "62.5", "2", "688.0"],
    ]  # fmt: skip
    assert any("number 3 of `vinoground_score`; not in the averages" in note for note in notes)


@pytest.mark.parametrize(
    ("score", "row"),
    [
        (None, {}),
        ("N/A", {}),
        ([float("nan")] * 3, {}),
        ([50.0], {"vinoground/Vinoground text": 50.0}),
    ],
)
def test_a_record_without_the_scores_is_told(tmp_path, score, row):
    logs = Logs(tmp_path / "logs")
    logs.write("vinoground", {SCORE: score}, 85)
    (table,) = read_tables(logs.folder)
    assert table.rows == {85: row}
    assert table.unread == (set() if row else {"vinoground"})


def test_lmms_eval_counts_all_pairs_in_that_order(monkeypatch):
    """Its own scoring: half of the pairs right for text, a fifth, which are of these, for video."""
    from lmms_eval.tasks.vinoground import utils

    names = [f"{pair}_{side}" for pair in range(500) for side in ("pos", "neg")]
    truth = {name: {"GT": "A"} for name in names}
    monkeypatch.setattr(utils, "prep_data", lambda: (truth, truth))
    right = {"text": 250, "video": 100}
    answers = [
        {
            "index": name,
            "categories": ["all"],
            "question_type": kind,
            "pred": "A." if int(name.split("_")[0]) < right[kind] else "B.",
        }
        for name in names
        for kind in right
    ]
    assert list(utils.vinoground_aggregate_results(answers)) == [50.0, 20.0, 20.0]
    with pytest.raises(KeyError):  # why LIMIT is refused
        utils.vinoground_aggregate_results(answers[:8])


def test_a_limit_is_refused_before_the_first_run():
    found = registry.read_registry(["vinoground"])
    found.check(["vinoground"], None)
    with pytest.raises(HiPruneError, match=r"^LIMIT='5': expected none for vinoground"):
        found.check(["vinoground"], 5)


def test_the_bench_script_gets_as_far_as_the_data(checkpoint, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    settings = {"CKPT": str(checkpoint), "TASKS": "vinoground", "OUTPUT": str(tmp_path / "out")}
    status, output = bench_here("bench_qwen.sh", **settings)
    assert status == 1
    left_out = "vinoground: left out: data set HanSolo9682/Vinoground is not on this machine"
    assert output.count(left_out) == 4  # unpruned, and a third, 2/9 and a ninth of 36 tokens
    for budget in (12, 8, 4):
        assert f"N' = {budget}, {left_out}" in output


def test_a_video_is_asked_about_with_the_frames_of_its_training(checkpoint, tmp_path, monkeypatch):
    """Eight, each pruned to N' beside its CLS token; the checkpoint has no chat template."""
    original = EvaluationTracker.save_results_aggregated
    monkeypatch.setattr(EvaluationTracker, "save_results_aggregated", original)
    monkeypatch.setenv("HIPRUNE_RETENTION", "5")
    given = {"pretrained": str(checkpoint), "device_map": "cpu", "dtype": "float32"}
    model = get_model("hiprune_hf")(**given)
    model.task_dict = {TASK: {"test": DOCS}}
    question = asking({"type": "video", "url": video(tmp_path)})
    with torch.no_grad():
        model.generate_until(question)
    record = model.record.as_dict()
    assert (record["images"], record["visual_tokens_per_image"]) == (1, 8 * (1 + 5))
    assert record["family"] == "video_llava" and record["max_num_frames"] == 8
    asked, _ = model._ask(*question[0].arguments[:2], DOCS[0])
    assert model._text(asked, []) == "USER: <video>\nWhat moves? ASSISTANT:"
    assert get_model("hiprune_hf")(**given, max_num_frames=4).max_num_frames == 4
