"""transformers' LLaVA against the `llava` package: the same weights keep and answer the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="transformers' own LLaVA is newer")

import numpy as np
from PIL import Image
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
)

import hiprune
from hiprune import HiPruneConfig

FILE = Path(__file__).parent / "data" / "llava_golden.npz"  # by tests/make_llava_golden.py
FAMILIES = {"llava": LlavaForConditionalGeneration, "llava_next": LlavaNextForConditionalGeneration}
PLACEHOLDER = -200  # of the `llava` package


@pytest.fixture(scope="module")
def golden() -> dict:
    with np.load(FILE) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def converted(golden, tmp_path_factory):
    """The stored checkpoints, written in their own format and converted."""
    from scripts.convert.to_hf import convert

    folders = {}
    for family in FAMILIES:
        source = tmp_path_factory.mktemp(family)
        (source / "vision_tower").mkdir()
        for name in ("config.json", "tokenizer.model", "vision_tower/config.json"):
            (source / name).write_bytes(golden[f"{family}/file/{name}"].tobytes())
        shapes = json.loads(golden[f"{family}/file/weights.json"].tobytes())
        flat = torch.from_numpy(golden[f"{family}/weights"])
        parts = flat.split([int(np.prod(shape)) for _, shape in shapes])
        weights = {
            name: part.reshape(shape).clone()
            for (name, shape), part in zip(shapes, parts, strict=True)
        }
        torch.save(weights, source / "pytorch_model.bin")
        folders[family] = convert(source, tmp_path_factory.mktemp(f"{family}-hf"))
    return folders


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_tokens_and_logits_as_the_llava_package(golden, converted, family, attention, case):
    model = FAMILIES[family].from_pretrained(
        converted[family], dtype=torch.float32, attn_implementation=attention
    )
    own = {k.removeprefix(f"{family}/"): v for k, v in golden.items() if k.startswith(family + "/")}
    sizes = [(height, width) for width, height in own[f"case/{case}/sizes"].tolist()]
    pixels = [
        torch.from_numpy(own[f"case/{case}/pixels/{i}"].astype(np.float32))
        .repeat_interleave(7, dim=2)
        .repeat_interleave(7, dim=3)  # (V, 3, 84, 84)
        for i in range(len(sizes))
    ]
    arguments = {"pixel_values": torch.cat(pixels)}
    lengths = [36] * len(sizes)
    if family == "llava_next":
        arguments["image_sizes"] = torch.tensor(sizes)
        processor = AutoProcessor.from_pretrained(converted[family])
        lengths = processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
    ids, counts = [], iter(lengths)
    for token in own[f"case/{case}/ids"].tolist():
        is_image = token == PLACEHOLDER
        ids += [model.config.image_token_id] * next(counts) if is_image else [token]
    settings = (own[f"setting/{name}"].item() for name in ("retention", "alpha", "object_layer"))
    with hiprune.prune(model, HiPruneConfig(*settings)) as pruned, torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), **arguments).logits[0]
    for image, selection in enumerate(pruned.selections):
        kept = torch.from_numpy(own[f"case/{case}/kept/{image}"]).long()
        assert torch.equal(selection.indices, kept)
    expected = torch.from_numpy(own[f"case/{case}/logits"])
    found = logits[-len(expected) :, : expected.shape[1]]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_processor_of_a_converted_checkpoint(converted, family):
    processor = AutoProcessor.from_pretrained(converted[family])
    model = FAMILIES[family].from_pretrained(converted[family], dtype=torch.float32)
    conversation = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "Is there a cat?"}],
        }
    ]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    assert prompt == "USER: <image>\nIs there a cat? ASSISTANT:"
    pictures = [Image.new("RGB", size, (200, 30, 60)) for size in ((160, 160), (90, 200))]
    inputs = processor(images=pictures, text=[prompt, prompt], padding=True, return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=3)
    with hiprune.prune(model, HiPruneConfig(retention=0.2, object_layer=3)) as pruned:
        found = model.generate(**inputs, max_new_tokens=3)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(found[:, :length], expected[:, :length])
    assert len(pruned.selections) == 2
    answer = processor.batch_decode(found[:, length:], skip_special_tokens=True)
    assert all(text.strip().split()[0] in ("Yes", "No") for text in answer)


def test_what_cannot_be_converted_is_said(golden, tmp_path):
    from scripts.convert.names import of_package
    from scripts.convert.to_hf import convert

    settings = json.loads(golden["llava/file/config.json"].tobytes())
    for changed, message in (("llava_mistral", "model_type"), ("llava_llama", "no model")):
        (tmp_path / "config.json").write_text(json.dumps({**settings, "model_type": changed}))
        with pytest.raises(SystemExit, match=message):
            convert(tmp_path, tmp_path / "hf")
    with pytest.raises(SystemExit, match=r"transformer\.h\.0: not a weight"):
        of_package({"transformer.h.0": torch.ones(1)})
