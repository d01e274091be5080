"""The modules of notebooks/: encoders, models, images and finished runs, as a user has them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

if int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("the notebooks need transformers 5", allow_module_level=True)

from table_logs import Logs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))


def coco_folder(folder: Path) -> Path:
    """Three images: one without objects, one with a polygon, one with a crowd's run lengths."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    images, crowd = [], {"counts": [8 * 10, 8 * 2, 8 * 4], "size": [8, 16]}  # columns 10 and 11
    for number in (3, 1, 2):
        Image.new("RGB", (16, 8), "blue").save(folder / "val2017" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 8, "width": 16})
    annotations = [
        {"image_id": 2, "segmentation": [[5, 1, 8, 1, 8, 4, 5, 4]], "iscrowd": 0},
        {"image_id": 3, "segmentation": crowd, "iscrowd": 1},
    ]
    file = folder / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


def test_coco(tmp_path, monkeypatch):
    import samples

    from hiprune import HiPruneError

    monkeypatch.setenv("COCO", str(coco_folder(tmp_path / "coco")))
    found = samples.find_samples("llava", None, 5)
    assert found.source == "2 images of COCO val2017"
    assert [sample.name for sample in found] == ["2.jpg", "3.jpg"]
    assert found[0].image.size == (8, 8)  # columns 4 to 11 of 16
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[1:5, 1:5] = True
    assert torch.equal(found[0].mask, expected)
    assert found[1].mask[:, 6:].all() and not found[1].mask[:, :6].any()
    with pytest.raises(HiPruneError, match=r"expected a folder with val2017/ and annotations"):
        samples.find_samples(None, None, 5, coco=str(tmp_path))
    # What the caller says comes before the variable.
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    assert samples.find_samples("llava", str(tmp_path), 5).source == "1 picture of yours"
    coco = os.environ["COCO"]
    assert samples.find_samples(None, str(tmp_path), 5, coco).source == "2 images of COCO val2017"
    assert len(samples.find_samples(None, str(tmp_path), 5, masks=True)) == 2


def test_pictures_of_the_users_and_at_hand(tmp_path):
    import samples

    from hiprune import HiPruneError

    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    found = samples.find_samples("llava", str(tmp_path), 5)
    assert (found.source, found[0].image.size) == ("1 picture of yours", (40, 40))
    with pytest.raises(HiPruneError, match=r"no picture; expected a folder of \.jpg"):
        samples.find_samples(None, str(tmp_path / "nothing"), 5)
    photos = samples.find_samples(None, None, 20)
    assert len(photos) >= 6 and all(p.image.width == p.image.height for p in photos)
    scenes = samples.find_samples(None, str(tmp_path), 2, masks=True)
    assert len(scenes) == 2 and scenes[0].mask.any()


def test_finished_runs(tmp_path, capsys):
    """Curves of the methods that ran, the sweep's points that ran; nothing where nothing ran."""
    import finished

    (tmp_path / "empty").mkdir()
    assert finished.read_finished(str(tmp_path / "empty"))[0] == []
    logs = Logs(tmp_path / "logs")
    metrics = {"existence_accuracy,none": 0.8, "colour,none": 0.5}
    tiny = {"checkpoint": "somewhere/llava-1.5-tiny", "object_layer": 3}
    logs.write("hiprune_tiny", metrics, None, tokens=144.0, **tiny)
    (group,), where = finished.read_finished(str(logs.folder))
    assert where == "logs"  # of a folder elsewhere the name alone
    assert not finished.show_curves(group) and not finished.show_sweeps(group)
    for budget in (48, 16):
        logs.write("hiprune_tiny", metrics, budget, **tiny)
        logs.write("hiprune_tiny", metrics, budget, variant={"method": "uniform"}, **tiny)
    for seed in (0, 1):
        variant = {"method": "random", "seed": seed}
        logs.write("hiprune_tiny", metrics, 48, variant=variant, **tiny)
    logs.write("hiprune_tiny", metrics, 48, alpha=0.5, **tiny)
    (group,), _ = finished.read_finished(str(logs.folder))
    curves = {curve.method: curve.rows for curve in group.curves()}
    assert {method: [len(rows) for rows in c.values()] for method, c in curves.items()} == {
        "hiprune": [1, 1],
        "uniform": [1, 1],
        "random": [2, 0],
    }
    assert (group.budget_of_ablation(), group.object_layer, group.tiny) == (48, 3, True)
    assert group.curves_lack() == [
        "HiPrune at 72, 32, 8",
        "CLS attention",
        "uniform at 72, 32, 8",
        "random at 72 (3 of 3 seeds), 48 (1 of 3 seeds), 32 (3 of 3 seeds), 16 (3 of 3 seeds), "
        "8 (3 of 3 seeds)",
        "VisPruner",
        "SCOPE",
        "DivPrune",
        "VisionZip",
    ]
    assert finished.show_curves(group) and finished.show_sweeps(group)


def test_which_runs_are_read(tmp_path, monkeypatch):
    """The variable LOGS, else what is kept, else what ran last."""
    import finished

    monkeypatch.setattr(finished.paths, "ROOT", tmp_path)
    monkeypatch.delenv("LOGS", raising=False)
    tiny = {"checkpoint": "somewhere/llava-1.5-tiny", "object_layer": 3}
    Logs(tmp_path / "logs").write("hiprune_tiny", {"existence_accuracy,none": 0.8}, 48, **tiny)
    (tmp_path / "results" / "tiny" / "llava-1.5").mkdir(parents=True)
    assert finished.read_finished()[1] == "logs"
    (run,) = (tmp_path / "logs").rglob("*_results.json")
    kept = tmp_path / "results" / "tiny" / "llava-1.5" / "runs.jsonl"
    kept.write_text(json.dumps(json.loads(run.read_text())) + "\n")
    groups, where = finished.read_finished()
    assert (len(groups), where) == (1, "results/tiny")
    monkeypatch.setenv("LOGS", str(tmp_path / "logs"))
    assert finished.read_finished()[1] == "logs"


def test_what_was_measured_and_what_is_printed():
    from measured import read_counted, read_measured, read_printed

    runs = {run.file: run for run in read_measured()}
    run = runs["results/efficiency/llava-1.5-7b/result.json"]
    assert list(run.rows) == ["unpruned", 192, 128, 64]
    assert run.ratios[192, "prefill"]["n"] == 5
    assert read_printed("prefill_ms") == {"unpruned": 54.31, 192: 28.56, 128: 25.59, 64: 21.96}
    counted, printed = read_counted("llava-1.5-7b", "paper"), read_printed("FLOPs_T")
    assert {budget: round(value, 2) for budget, value in counted.items()} == printed
