"""scripts/show_tokens.py: a picture in, a figure out, what is wrong said clearly."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

if int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("transformers' own models need transformers 5", allow_module_level=True)

from hiprune import prune, select_tokens
from hiprune.figures.maps import received_attention_maps
from hiprune.images import open_image
from scripts.show import __main__ as show_tokens
from scripts.show import checkpoints

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "show_tokens.py"
TOTALS = {"tiny-llava": 144, "tiny-llava-next": 5 * 144, "tiny-qwen": 12 * 12}


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    """Checkpoints of the trained ones' size, untrained, where the trained ones would lie."""
    from scripts.tiny.export import export
    from scripts.tiny.loop import make_trainee

    folder = tmp_path_factory.mktemp("assets")
    families = ("llava", "llava_next", "qwen2_5_vl")
    for tiny, family in zip(checkpoints.TINY.values(), families, strict=True):
        torch.manual_seed(0)
        trainee = make_trainee(family, tmp_path_factory.mktemp("tokens"))
        export(trainee, folder / tiny.asset)
    return folder


@pytest.fixture
def at(assets, monkeypatch, tmp_path) -> Path:
    """An empty folder to run in, with a picture of 500 x 300 in it."""
    monkeypatch.setattr(checkpoints, "ASSETS", assets)
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).uniform(0, 255, (6, 10, 3)).astype(np.uint8)
    image = Image.fromarray(noise).resize((500, 300), Image.Resampling.BICUBIC)
    image.save(tmp_path / "photo.jpg")
    image.resize((336, 336)).save(tmp_path / "square.png")
    return tmp_path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and error."""
    capsys.readouterr()
    try:
        show_tokens.main(list(arguments))
        code = 0
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("name", TOTALS)
def test_the_tiny_models_keep_a_third(name, at, capsys):
    code, out, _ = run(capsys, "square.png", "--model", name)
    assert code == 0
    assert out.startswith(f"{round(TOTALS[name] / 3)} of {TOTALS[name]} tokens kept: anchors")
    assert f"by layer {checkpoints.TINY[name].object_layer}:" in out
    assert out.endswith("wrote square-tokens.png\n")
    with Image.open(at / "square-tokens.png") as figure:
        assert figure.width > 1000
        colours = np.asarray(figure.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(colours, axis=0)) > 100


def test_settings_and_the_file_to_write(at, capsys):
    settings = ("--retention", "30", "--alpha", "0.5", "--object-layer", "2", "--out", "x.svg")
    code, out, _ = run(capsys, "photo.jpg", *settings)
    assert code == 0
    assert out.startswith("30 of 144 tokens kept: anchors by layer 2: 3, their buffers: ")
    assert out.endswith("alpha 0.5\nwrote x.svg\n")
    assert "</svg>" in (at / "x.svg").read_text()
    assert run(capsys, "photo.jpg", "--crop", "--out", "crop.png")[0] == 0
    code, out, _ = run(capsys, "photo.jpg", "--model", "tiny-qwen", "--retention", "0.1")
    assert out.startswith("20 of 198 tokens kept")  # 11 x 18 tokens of 28 pixels


def test_variables_hold_unless_an_option_says_otherwise(at, capsys, monkeypatch):
    monkeypatch.setenv("HIPRUNE_RETENTION", "25")
    monkeypatch.setenv("HIPRUNE_ALPHA", "0")
    assert run(capsys, "photo.jpg")[1].startswith("25 of 144 tokens kept: anchors by layer 3: 0,")
    assert run(capsys, "photo.jpg", "--retention", "26")[1].startswith("26 of 144")


def test_released_models_see_images_within_the_limits_of_lmms_eval(at, assets, capsys):
    """Another folder stands for them; the tiny model keeps the limits of its scenes."""
    shutil.copytree(assets / "qwen2.5-vl-tiny", at / "mine")
    options = ("--model", str(at / "mine"), "--retention", "0.1", "--object-layer", "4")
    assert " of 273 tokens kept" in run(capsys, "photo.jpg", *options)[1]  # 13 x 21, at least 256
    pytest.importorskip("lmms_eval")
    import inspect

    from hiprune.lmms.qwen import Qwen25VLHiPrune

    found = inspect.signature(Qwen25VLHiPrune.__init__).parameters
    assert {name: found[name].default for name in checkpoints.PIXELS} == checkpoints.PIXELS


def test_what_is_painted_is_what_the_patch_keeps(at, assets, capsys):
    """The selection of an own forward, and the tokens that whole maps would choose."""
    args = show_tokens._parser().parse_args(["photo.jpg", "--alpha", "0.5"])
    checkpoint = checkpoints.find_checkpoint("tiny")
    config = show_tokens.settings(args, checkpoint)
    model, processor = checkpoint.load()
    image = open_image(Path("photo.jpg"))
    figure, line = show_tokens.draw(model, processor, image, config)
    from hiprune.images import pad_to_square

    pixels = processor(images=pad_to_square(image, processor.image_mean), return_tensors="pt")
    with prune(model, config) as pruned:
        pruned.encode_images(pixels["pixel_values"])
        kept = pruned.selections[0]
    maps = received_attention_maps(model.model.vision_tower, pixels["pixel_values"])
    again = select_tokens(maps[2], maps[6], columns=12, budget=48, alpha=0.5)
    assert torch.equal(kept.indices, again.indices)
    (axes,) = [
        axes for axes in figure.axes if axes.get_title() == "padded to a square: 48 of 144 kept"
    ]
    tints = axes.images[1].get_array()[..., :3]
    assert (tints.sum(axis=-1) > 0).flatten().nonzero()[0].tolist() == kept.indices[0].tolist()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[1:3] == ["layer 3 of 8: chooses anchors", "layer 7 of 8: chooses registers"]
    assert f"{int(kept.anchor.sum())}, their buffers: {int(kept.buffer.sum())}" in line
    assert not vars(model).keys() & {"forward", "generate", "_hiprune_handle"}


def png(width: int, height: int) -> bytes:
    """A PNG file whose header promises so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def test_files_that_are_no_pictures(at, capsys, monkeypatch):
    # lmms-eval's tasks set it for the process that imports them.
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", False)
    whole = (at / "photo.jpg").read_bytes()
    for name, content, expected in (
        ("none.png", None, "no such file"),
        ("empty.png", b"", "an empty file"),
        ("text.png", b"not a picture at all", "unreadable"),
        ("cut.jpg", whole[: len(whole) // 2], "unreadable"),
        ("zero.png", png(0, 7), "unreadable|0 x 7 pixels"),
        ("zero.ppm", b"P6 0 5 255\n", "unreadable|0 x 5 pixels"),
        ("bomb.png", png(60000, 60000), "too large"),
    ):
        if content is not None:
            (at / name).write_bytes(content)
        code, out, err = run(capsys, name)
        assert (code, out) == (2, "")
        assert name in err and any(part in err for part in expected.split("|")), err
        assert "expected a picture" in err and err.count("\n") == 1
    code, _, err = run(capsys, str(at))
    assert code == 2 and "no such file" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such/folder"], "--model no/such/folder:.*, or tiny, tiny-llava"),
        (["--model", "bert"], "--model bert: architectures not stated; expected one of "),
        (["--retention", "0"], "--retention '0': expected an integer from 1 to 576"),
        (["--retention", "500"], "retention=500: expected 1 to 144"),
        (["--retention", "0.3"], "--retention '0.3': expected an integer"),
        (["--model", "tiny-qwen", "--retention", "50"], "--retention '50': expected a number"),
        (["--model", "tiny-llava-next", "--retention", "4"], "retention=4: expected 5 to"),
        (["--alpha", "2"], "--alpha '2': expected a number from 0 to 1"),
        (["--object-layer", "9"], "--object-layer '9': expected an integer from 1 to 8"),
        (["--object-layer", "x"], "--object-layer 'x': expected an integer"),
        (["--out", "no/folder/x.png"], "no folder no/folder"),
        (["--out", "x.abc"], r"--out x.abc:.*expected .png"),
        (["--device", "nowhere"], "--model tiny on nowhere: "),
        (["--dpi", "many"], "invalid int value: 'many'"),
    ],
)
def test_arguments_that_are_none(arguments, message, at, capsys):
    import re

    (at / "bert").mkdir()
    (at / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    code, out, err = run(capsys, "photo.jpg", *arguments)
    assert code == 2
    assert re.search(message, err), err
    assert "Traceback" not in err and "wrote" not in out


def test_methods_that_the_maps_do_not_explain(at, capsys, monkeypatch):
    monkeypatch.setenv("HIPRUNE_METHOD", "random")
    code, _, err = run(capsys, "photo.jpg")
    assert code == 2 and "HIPRUNE_METHOD='random'" in err


def test_checkpoints_that_are_not_whole(at, assets, capsys, monkeypatch):
    """A clone without them; one whose large files are pointers."""
    monkeypatch.setattr(checkpoints, "ASSETS", at)
    code, _, err = run(capsys, "photo.jpg", "--model", "tiny")
    assert code == 2 and "llava-1.5-tiny" in err
    folder = shutil.copytree(assets / "llava-1.5-tiny", at / "llava-1.5-tiny")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    code, _, err = run(capsys, "photo.jpg", "--model", "tiny")
    assert code == 2 and "error: --model tiny on cpu: " in err


def test_the_command_itself(at, assets, capsys):
    """From a shell, with a folder as the model, elsewhere than in the repository."""
    checkpoint = shutil.copytree(assets / "llava-1.5-tiny", at / "mine")
    arguments = ["photo.jpg", "--model", str(checkpoint)]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    # The family's own defaults do not fit a model of this size: the same shares of it, and said.
    assert done.returncode == 0 and done.stdout.startswith("48 of 144 tokens kept")
    assert "anchors by layer 3" in done.stdout
    assert "retention=48 of this model's 144 tokens per image, unless set" in done.stderr
