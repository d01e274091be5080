"""convert.to_llava: what it writes, the way back, and the `llava` package reading it."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from scripts.convert import to_llava
from scripts.convert.names import TOWER
from scripts.tiny.task import questions

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("llava", "llava_next")
ASSETS = {"llava": "llava-1.5-tiny", "llava_next": "llava-v1.6-tiny"}
REGROWN = ("embed_tokens.weight", "lm_head.weight")  # the image token's row and those that fill up
newer = pytest.mark.skipif(
    int(version("transformers").split(".")[0]) < 5, reason="needs the environment .venv-qwen"
)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("model*.safetensors") for k, v in load_file(file).items()}


@pytest.fixture(scope="module", params=FAMILIES)
def round_trip(request, tmp_path_factory):
    """(family, a random checkpoint of transformers' format, in the other format, back again)"""
    from random_checkpoint import make_checkpoint

    from scripts.convert.to_hf import convert

    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    source = make_checkpoint(folder / "hf", f"{family}_hf", image_size=84, layers=6, width=16)
    middle = to_llava.convert(source, folder / "llava")
    return family, source, middle, convert(middle, folder / "back")


@newer
def test_the_way_back_gives_the_same_tensors(round_trip):
    _, source, middle, back = round_trip
    before, after = weights_of(source), weights_of(back)
    assert before.keys() == after.keys()
    pieces = json.loads((middle / "config.json").read_text())["vocab_size"]
    for name, weight in before.items():
        assert weight.dtype == after[name].dtype == torch.float16
        if name.endswith(REGROWN):
            assert torch.equal(weight[:pieces], after[name][:pieces])
            assert len(weight) == pieces + 1  # <image>
        else:
            assert torch.equal(weight, after[name]), name


@newer
def test_the_way_back_gives_the_same_model(round_trip):
    """Tensors in the wrong places, or a lost setting, would give other logits."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    family, source, middle, back = round_trip
    pieces = json.loads((middle / "config.json").read_text())["vocab_size"]
    picture = Image.effect_noise((160, 90), 90).convert("RGB")
    text = "USER: <image>\nIs there a cat? ASSISTANT:"
    inputs, again = (
        AutoProcessor.from_pretrained(folder)(images=picture, text=text, return_tensors="pt")
        for folder in (source, back)
    )
    assert torch.equal(inputs["pixel_values"], again["pixel_values"])
    assert family == "llava" or inputs["pixel_values"].shape[1] > 1
    logits = []
    for folder in (source, back):
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            logits.append(model(**inputs).logits[..., :pieces])
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    assert logits[0].abs().max() > 0.1


@newer
def test_the_way_back_gives_the_same_settings(round_trip):
    family, source, middle, back = round_trip
    before, after = (json.loads((f / "config.json").read_text()) for f in (source, back))
    for config in (before, after):
        config["text_config"].pop("vocab_size")
        config["text_config"].pop("pad_token_id")  # the `llava` package's has one
        config["vision_config"].pop("architectures", None)  # of the tower in a folder of its own
    assert before == after
    settings = json.loads((middle / "config.json").read_text())
    assert settings["mm_vision_tower"] == str(middle / "vision_tower")
    assert settings["image_aspect_ratio"] == ("pad" if family == "llava" else "anyres")
    if family == "llava_next":  # [width, height], [height, width]
        assert [84, 168] in before["image_grid_pinpoints"]
        assert settings["image_grid_pinpoints"] == [
            [width, height] for height, width in before["image_grid_pinpoints"]
        ]


@pytest.fixture
def source(tmp_path):
    """A folder with what the converter reads first; weights that it knows."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (tmp_path / "tokenizer.model").write_bytes(
        (ROOT / "assets" / ASSETS["llava"] / "tokenizer.model").read_bytes()
    )
    save_file({"language_model.lm_head.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    return tmp_path


def test_grids_that_are_no_squares_keep_their_shape(tmp_path):
    """The released sets hold every grid and its transpose, which would hide an exchange."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "assets" / ASSETS["llava_next"], source)
    config = json.loads((source / "config.json").read_text())
    config["image_grid_pinpoints"] = [[168, 504], [336, 168]]  # [height, width]
    (source / "config.json").write_text(json.dumps(config))
    target = to_llava.convert(source, tmp_path / "llava")
    written = json.loads((target / "config.json").read_text())
    assert written["image_grid_pinpoints"] == [[504, 168], [168, 336]]  # [width, height]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_llama", None])
def test_another_kind_of_model(source, kind):
    (source / "config.json").write_text(json.dumps({"model_type": kind} if kind else {}))
    message = rf"^model_type={kind!r}: expected llava or llava_next$"
    refused(source, message)


def test_a_missing_tokenizer(source):
    (source / "tokenizer.model").unlink()
    refused(source, r"tokenizer\.model: missing; the llava package reads its tokenizer from it$")


def test_missing_weights(source):
    (source / "model.safetensors").unlink()
    refused(source, r": no model\*\.safetensors in it$")


def test_an_unknown_weight(source):
    save_file({"transformer.h.0.weight": torch.ones(2)}, source / "model-2.safetensors")
    refused(source, r"^transformer\.h\.0\.weight: not a weight of a LLaVA on Llama$")


def refused(source: Path, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        to_llava.convert(source, source / "llava")
    assert not (source / "llava").exists()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("vision_tower.vision_model.encoder.x", f"{TOWER}encoder.x"),
        ("vision_tower.encoder.x", f"{TOWER}encoder.x"),
        ("language_model.model.layers.0.x", "model.layers.0.x"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("image_newline", "model.image_newline"),
        ("multi_modal_projector.linear_2.bias", "model.mm_projector.2.bias"),
    ],
)
def test_names_as_both_transformers_4_and_5_write_them(source, written, read):
    save_file({written: torch.ones(2)}, source / "model.safetensors")
    assert list(to_llava._read_weights(source)) == [read]


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
    """(family, asset, what the package's loader makes of the converted asset)"""
    builder = pytest.importorskip("llava.model.builder", reason="needs .venv-llava")
    asset = ROOT / "assets" / ASSETS[request.param]
    path = tmp_path_factory.mktemp("converted") / f"llava-{request.param}"
    to_llava.convert(asset, path)
    tokenizer, model, processor, _ = builder.load_pretrained_model(
        str(path), None, path.name, device_map="cpu", attn_implementation="eager"
    )
    return request.param, asset, tokenizer, model.float().eval(), processor


def test_the_package_loads_every_tensor_of_an_asset(loaded):
    family, asset, tokenizer, model, _ = loaded
    found = {**model.state_dict(), **vars(model.get_vision_tower())["_modules"]}
    for name, weight in to_llava._read_weights(asset).items():
        expected = weight[: len(tokenizer)] if name.endswith(REGROWN) else weight
        assert torch.equal(found[name], expected.float()), name
    assert (family == "llava_next") == ("model.image_newline" in found)


@torch.no_grad()
def test_the_package_answers_as_trained(loaded, tmp_path):
    from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
    from llava.conversation import conv_templates
    from llava.mm_utils import process_images, tokenizer_image_token

    family, _, tokenizer, model, processor = loaded
    right = []
    for row in questions(family, 8, 3, tmp_path):
        talk = conv_templates["vicuna_v1"].copy()
        talk.append_message(talk.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{row['question']}")
        talk.append_message(talk.roles[1], None)
        ids = tokenizer_image_token(
            talk.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"
        )
        with Image.open(row["image"]) as picture:
            views = process_images([picture], processor, model.config)
            answer = model.generate(
                ids[None],
                images=[view.float() for view in views],
                image_sizes=[picture.size],
                do_sample=False,
                max_new_tokens=4,
            )
        right.append(tokenizer.decode(answer[0], skip_special_tokens=True).strip() == row["answer"])
    assert sum(right) >= 0.8 * len(right)
