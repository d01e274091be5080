"""hiprune show, scripts/show_tokens.py: pictures in, figures out, what is wrong said clearly."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from forking_python import command, serving_here
from PIL import Image

if int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("transformers' own models need transformers 5", allow_module_level=True)

from hiprune import prune, select_tokens
from hiprune.figures.maps import received_attention_maps
from hiprune.images import open_image
from hiprune.show import __main__ as show_tokens
from hiprune.show import checkpoints
from scripts.benchmarks import LLAVA_NEXT_TINY, LLAVA_TINY, QWEN_TINY

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "show_tokens.py"
QUICK = ("--dpi", "30")
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


@pytest.fixture(scope="module", autouse=True)
def _loaded_once():
    """A run leaves a model as it found it: the next may have the same."""
    load, loaded = checkpoints.Checkpoint.load_whole, {}

    def load_once(checkpoint, device="cpu"):
        key = checkpoint.path, device
        if key not in loaded:
            loaded[key] = load(checkpoint, device)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpoint, "load_whole", load_once)
        yield


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
        code = show_tokens.main(list(arguments))
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
        assert figure.width > 900
        assert len(figure.convert("RGB").getcolors(figure.width * figure.height)) > 100


def test_settings_and_the_file_to_write(at, capsys):
    settings = ("--retention", "30", "--alpha", "0.5", "--object-layer", "2", "--out", "x.svg")
    code, out, _ = run(capsys, "photo.jpg", *settings)
    assert code == 0
    assert out.startswith("30 of 144 tokens kept: anchors by layer 2: 3, their buffers: ")
    assert out.endswith("alpha 0.5\nwrote x.svg\n")
    assert "</svg>" in (at / "x.svg").read_text()
    assert run(capsys, *QUICK, "photo.jpg", "--crop", "--out", "crop.png")[0] == 0
    code, out, _ = run(capsys, *QUICK, "photo.jpg", "--model", "tiny-qwen", "--retention", "0.1")
    assert out.startswith("20 of 198 tokens kept")  # 11 x 18 tokens of 28 pixels


def test_variables_hold_unless_an_option_says_otherwise(at, capsys, monkeypatch):
    monkeypatch.setenv("HIPRUNE_RETENTION", "25")
    monkeypatch.setenv("HIPRUNE_ALPHA", "0")
    run_quickly = partial(run, capsys, *QUICK, "photo.jpg")
    assert run_quickly()[1].startswith("25 of 144 tokens kept: anchors by layer 3: 0,")
    assert run_quickly("--retention", "26")[1].startswith("26 of 144")


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
    figure, (line,) = show_tokens.draw(model, processor, image, config)
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
    veil = axes.images[1].get_array()[..., 3]
    assert (veil == 0).flatten().nonzero()[0].tolist() == kept.indices[0].tolist()
    titles = {axes.get_title() for axes in figure.axes}
    assert titles >= {"layer 3 of 8:\nchooses anchors", "layer 7 of 8:\nchooses registers"}
    assert f"{int(kept.anchor.sum())}, their buffers: {int(kept.buffer.sum())}" in line
    assert not vars(model).keys() & {"forward", "generate", "_hiprune_handle"}


def test_files_that_are_no_pictures(at, capsys, monkeypatch):
    """One line with the reason, and nothing written: tests/test_images.py has every kind."""
    # lmms-eval's tasks set it for the process that imports them.
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", False)
    whole = (at / "photo.jpg").read_bytes()
    for name, content, expected in (
        ("none.png", None, "no such file"),
        ("text.png", b"not a picture at all", "a text that begins with"),
        ("cut.jpg", whole[: len(whole) // 2], "cut off"),
    ):
        if content is not None:
            (at / name).write_bytes(content)
        code, out, err = run(capsys, name)
        assert (code, out) == (2, "")
        assert err.startswith(f"hiprune show: error: IMAGE {name}: {expected}")
        assert "expected a picture" in err and err.count("\n") == 1


def test_an_image_that_the_processor_refuses(at, capsys):
    Image.new("RGB", (300, 1)).save(at / "line.png")
    code, out, err = run(capsys, "line.png", "--model", "tiny-qwen")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith(
        "hiprune show: error: IMAGE line.png: image of 300 x 1 pixels: the model's image processor "
        "refuses it (absolute aspect ratio must be smaller than 200, got 300.0); expected"
    )
    assert run(capsys, *QUICK, "line.png")[0] == 0  # the other pads it
    Image.new("RGB", (1, 1)).save(at / "dot.png")
    for name in TOTALS:
        code, out, err = run(capsys, *QUICK, "dot.png", "--model", name)
        assert code == 0 or (code == 2 and "1 x 1 pixels" in err and err.count("\n") == 1), err


def test_several_pictures_and_folders(at, capsys):
    (at / "many" / "inner").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "a.png"):
        shutil.copy(at / "square.png", at / "many" / name)
    (at / "many" / "a-tokens.png").write_bytes(b"what this program wrote")
    (at / "many" / ".hidden").write_bytes(b"")
    code, out, err = run(capsys, *QUICK, "photo.jpg", "many")
    assert code == 1
    assert err == (
        "skipped: IMAGE many/inner: a folder; expected a picture with pixels, such as JPEG, PNG "
        "or WebP\n"
    )
    lines = out.splitlines()
    assert [line.partition(" tokens kept")[0] for line in lines[::2]] == [
        f"{name}: 48 of 144" for name in ("photo.jpg", "many/a.jpg", "many/a.png", "many/b.png")
    ]
    written = ["photo-tokens.png", "a-tokens.png", "a-2-tokens.png", "b-tokens.png"]
    assert lines[1::2] == [f"wrote {name}" for name in written]
    assert all((at / name).is_file() for name in written)

    (at / "out").mkdir()
    code, out, _ = run(capsys, *QUICK, "photo.jpg", "square.png", "--out", "out")
    assert code == 0
    assert sorted(p.name for p in (at / "out").iterdir()) == [
        "photo-tokens.png", "square-tokens.png"
    ]  # fmt: skip
    assert run(capsys, *QUICK, "photo.jpg", "--out", "out")[1].endswith(
        "wrote out/photo-tokens.png\n"
    )


def test_folders_and_lists_that_hold_no_picture(at, capsys):
    (at / "none").mkdir()
    code, out, err = run(capsys, "none")
    assert (code, out) == (2, "")
    assert err == "hiprune show: error: IMAGE none: no picture; expected some\n"
    code, out, err = run(capsys, "x.png", "none/y.png")
    assert (code, out) == (2, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["skipped"] * 2 + [
        "hiprune show"
    ]
    # What concerns all of them ends it, whatever the first is.
    code, out, err = run(capsys, "x.png", "photo.jpg", "--retention", "500")
    assert code == 2 and out == "" and "retention=500: expected 1 to 144" in err
    code, _, err = run(capsys, "photo.jpg", "square.png", "--out", "one.png")
    assert code == 2 and "--out one.png: no folder" in err


@pytest.mark.parametrize("name", TOTALS)
def test_a_question_is_answered_twice(name, at, assets, capsys):
    """With all tokens as by the model itself, and with the kept ones as by the patched one."""
    question = "What colour is the $ sign, or the $?"
    args = show_tokens._parser().parse_args(["square.png", "--model", name])
    checkpoint = checkpoints.find_checkpoint(name)
    model, processor = checkpoint.load_whole()
    config = show_tokens.settings(args, checkpoint)
    image = open_image("square.png")
    figure, lines = show_tokens.draw(model, processor, image, config, question=question)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=text, images=image, return_tensors="pt")

    def ask() -> str:
        output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        written = output[0, inputs["input_ids"].shape[1] :]
        return processor.decode(written, skip_special_tokens=True).strip()

    total = TOTALS[name]
    expected = [f"question: {question}", f"all {total} tokens: {ask()}"]
    with prune(model, config):
        expected.append(f"{round(total / 3)} tokens: {ask()}")
    assert lines[1:] == expected
    assert question in figure.get_suptitle()
    below = [axes.get_xlabel() for axes in figure.axes if "answer" in axes.get_xlabel()]
    assert [text.partition("\n")[0] for text in below] == [
        f"all {total} tokens answer", f"{round(total / 3)} tokens answer"
    ]  # fmt: skip
    if name == "tiny-llava":  # the signs are no formula, and letters that no font has are told
        asked = (*QUICK, "square.png", "--question", f"{question} \U00012000")
        code, out, err = run(capsys, *asked)
        assert code == 0 and "\nquestion: What colour is the $ sign" in out
        assert err.endswith("square-tokens.png: no font here has all letters of the texts above\n")


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


def test_the_command_itself(at, assets):
    """From a shell, with a folder as the model, elsewhere than in the repository."""
    checkpoint = shutil.copytree(assets / "llava-1.5-tiny", at / "mine")
    arguments = ["photo.jpg", "--model", str(checkpoint)]
    with serving_here() as place:
        line = [*command(place), SCRIPT, *arguments]
        done = subprocess.run(line, capture_output=True, text=True)
    # The family's own defaults do not fit a model of this size: the same shares of it, and said.
    assert done.returncode == 0 and done.stdout.startswith("48 of 144 tokens kept")
    assert "anchors by layer 3" in done.stdout
    assert "retention=48 of this model's 144 tokens per image, unless set" in done.stderr


def test_the_small_models_are_those_of_the_benchmarks():
    for tiny, theirs in zip(
        checkpoints.TINY.values(), (LLAVA_TINY, LLAVA_NEXT_TINY, QWEN_TINY), strict=True
    ):
        found = (tiny.asset, tiny.retention, tiny.object_layer)
        assert found == (theirs.asset, str(theirs.retentions[0]), theirs.object_layer)
        assert (checkpoints.ASSETS / tiny.asset / "config.json").is_file()


def test_where_no_clone_is(at, capsys, monkeypatch):
    """An installed package has no small models."""
    monkeypatch.setattr(checkpoints, "ASSETS", at / "assets")
    code, _, err = run(capsys, "photo.jpg")
    assert code == 2 and err.count("\n") == 1
    assert f"--model tiny: no {at / 'assets'}, which a clone of the repository has" in err


@pytest.mark.parametrize("name", ["PIL", "matplotlib", "transformers"])
def test_packages_that_are_missing(name, at, capsys, monkeypatch):
    monkeypatch.setattr(show_tokens, "find_spec", lambda asked: None if asked == name else object())
    code, _, err = run(capsys, "photo.jpg")
    extra = "transformers" if name == "transformers" else "figures"
    assert code == 2
    assert f"error: {name}: not installed; expected what `pip install 'hiprune[{extra}]'`" in err
