"""The encoders and models of the notebooks: where their tokens lie, what cannot be had."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

if int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("the notebooks need transformers 5", allow_module_level=True)


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))


def encoder_folder(kind: str, folder: Path, processor=None, side: int = 42) -> Path:
    """A small random encoder of a kind, with an image processor that resizes the whole image."""
    from transformers import AutoModel, ViTImageProcessor

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "image_size": side, "patch_size": 14}
    if kind == "dinov2":
        sizes["mlp_ratio"] = 2
    config = transformers.AutoConfig.for_model(kind, **sizes)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    processor = processor or ViTImageProcessor(size={"height": side, "width": side})
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model", "deit", "dinov2"])
def test_an_encoder_of_the_users(kind, tmp_path, capsys):
    from encoders import find_encoders

    folder = encoder_folder(kind, tmp_path / "mine")
    (encoder,) = find_encoders([str(folder)], "cpu")
    assert capsys.readouterr().out == "- mine: 3 layers, 3 x 3 tokens\n"
    assert (encoder.layers, encoder.middle) == (3, 1)
    look = encoder.look(Image.new("RGB", (50, 50), "red"))
    assert look.maps.shape == (3, 1, 9) and look.output.shape == look.last.shape == (1, 9, 32)
    assert look.grids[0].box == (0, 0, 50, 50)
    if kind == "clip_vision_model":
        assert (encoder.output, encoder.last) == ("layer 2's features", "layer 3's features")
        assert not torch.equal(look.output, look.last)
    else:
        assert encoder.output == encoder.last == "layer 3's features, after the final norm"
        assert torch.equal(look.output, look.last)


def test_where_the_tokens_of_an_encoder_lie(tmp_path):
    """Processors that crop, and pixels that fill no patch."""
    from encoders import find_encoders
    from looks import _sides
    from transformers import BitImageProcessor, DeiTImageProcessor, SiglipImageProcessor

    from hiprune import HiPruneError

    square = {"height": 42, "width": 42}
    for kind, processor, side, box in (
        ("dinov2", BitImageProcessor(size={"shortest_edge": 48}, crop_size=square), 42, (3, 45)),
        ("deit", DeiTImageProcessor(size=dict.fromkeys(square, 48), crop_size=square), 42, (3, 45)),
        ("siglip_vision_model", SiglipImageProcessor(size=dict.fromkeys(square, 48)), 48, (0, 42)),
    ):
        (encoder,) = find_encoders([str(encoder_folder(kind, tmp_path / kind, processor, side))])
        # Of 96 pixels each half is one of the encoder's: dark but for its first column of tokens.
        image = Image.new("RGB", (96, 96))
        image.paste("white", (2 * box[0], 0, 2 * box[0] + 28, 96))
        look = encoder.look(image)
        assert look.grids[0].box == pytest.approx((2 * box[0],) * 2 + (2 * box[1],) * 2)
        pixels = processor(images=image, return_tensors="pt")["pixel_values"][0, 0]
        means = pixels[:, :42].unflatten(1, (3, 14)).mean(dim=(0, 2))
        assert means[0] > 0.8 * pixels.max() and means[1:].max() < 0.8 * pixels.min()
    assert _sides(BitImageProcessor(size={"shortest_edge": 256})) == (256, 224)
    for sizes in ({"longest_edge": 48}, {"height": 48, "width": 42}):
        with pytest.raises(HiPruneError, match="expected one that resizes a square image to a"):
            _sides(SiglipImageProcessor(size=sizes))


def test_what_the_towers_of_checkpoints_show():
    from encoders import find_encoders

    image = Image.new("RGB", (168, 168), "red")
    llava, qwen = find_encoders(["tiny-llava", "tiny-qwen"], "cpu")
    assert (llava.layers, llava.tokens) == (8, "12 x 12 tokens")
    assert (llava.output, llava.last) == ("layer 7's features", "layer 8's features")
    look = llava.look(image)
    assert look.output.shape == look.last.shape == (1, 144, look.last.shape[-1])
    assert not torch.equal(look.output, look.last)
    assert qwen.layers == 8
    assert qwen.output == qwen.last == "the merged tokens, after the merger"
    look = qwen.look(image)
    assert torch.equal(look.output, look.last) and look.last.shape[:2] == (1, 36)


def test_encoders_that_cannot_be_had(monkeypatch, tmp_path, capsys):
    """A name of the user's is an error; the paper's are replaced, and a line says so."""
    import encoders

    from hiprune import HiPruneError

    monkeypatch.setattr(encoders, "hub_is_reached", lambda: False)
    with pytest.raises(HiPruneError, match=r"encoder no/such-encoder: .*expected tiny-llava"):
        encoders.find_encoders(["no/such-encoder"])
    monkeypatch.setattr(encoders, "_at_hand", lambda device: [])
    encoders.find_encoders(paper=("no/such-encoder", "no/other"))
    reason = "is left out: not in the hub's local cache, and the hub is not reached\n"
    expected = f"The paper's no/such-encoder {reason}The paper's no/other {reason}Used instead:\n"
    assert capsys.readouterr().out == expected
    # One that is there but cannot be loaded is not absent.
    broken = encoder_folder("deit", tmp_path / "broken")
    (broken / "preprocessor_config.json").write_text('{"image_processor_type": "None"}')
    with pytest.raises(HiPruneError, match=r"encoder .*broken: "):
        encoders.find_encoders(paper=(str(broken),))
    monkeypatch.undo()
    monkeypatch.setattr(encoders, "TINY", True)
    found = encoders.find_encoders(paper=("no/such-encoder",))
    said = capsys.readouterr().out
    assert "The paper's encoders (no/such-encoder): not asked for with --tiny.\nUsed" in said
    assert [encoder.family for encoder in found] == ["llava", "qwen2_5_vl"]


def test_errors_of_an_encoder_that_is_absent():
    import httpx
    from encoders import _is_absent
    from huggingface_hub.errors import LocalEntryNotFoundError

    wrapped = OSError("cannot load")
    wrapped.__cause__ = httpx.ReadTimeout("too slow")
    for error, local, expected in (
        (OSError("no file named model.safetensors"), True, True),
        (OSError("no file named model.safetensors"), False, False),
        (OSError(28, "No space left on device"), True, False),
        (LocalEntryNotFoundError("not there"), False, True),
        (wrapped, False, True),
        (ValueError("unknown model type"), True, False),
    ):
        assert _is_absent(error, local) is expected, error


def test_models_of_the_paper_that_are_not_whole(tmp_path, monkeypatch, capsys):
    """One in the cache, one that lacks a file, one that is not there; one at a time in memory."""
    import families
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    from hiprune import HiPruneError

    part = tmp_path / "part"
    part.mkdir()
    weights = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (part / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    for name in ("config.json", "preprocessor_config.json", "model-1.safetensors"):
        (part / name).write_text("{}")
    assert families._missing(part) == ["model-2.safetensors"]

    def cached(name, local_files_only):
        assert local_files_only
        if "Qwen" in name:
            raise LocalEntryNotFoundError("not there")
        return str(part)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    monkeypatch.setattr(families.paths, "TINY", False)
    models = families.find_models(device="cpu")
    said = capsys.readouterr().out.splitlines()
    name = "llava-hf/llava-1.5-7b-hf"
    lacks = "the hub's local cache lacks its model-2.safetensors"
    assert said[0] == f"The paper's {name} is left out: {lacks}"
    assert said[2].endswith("Qwen2.5-VL-3B-Instruct is left out: not in the hub's local cache")
    assert said[3] == "Used instead:" and len(models) == 3
    for model in (models[0], models[2]):
        selection, _ = model.select(Image.new("RGB", (168, 168), "red"), model.budgets[0], 0.1)
        assert selection.keep.any() and len(families._held) == 1
    # Whole, but not to be loaded: an error.
    (part / "model-2.safetensors").write_text("")
    with pytest.raises(HiPruneError, match="part"):
        families.find_models(device="cpu")
