"""From the `llava` package's checkpoints (liuhaotian) to transformers' own (llava-hf).

Weights, configuration, tokenizer, image processor and chat template.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
)

from scripts.convert.names import of_package

IMAGE = "<image>"
KINDS = ("llava_llama", "llava")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% elif message['role'] == 'assistant' %}ASSISTANT: "
    "{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ eos_token if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def convert(source: Path, target: Path) -> Path:
    """Write ``source`` (liuhaotian format) to ``target`` (llava-hf format) and return ``target``.

    Args:
        source: folder with config.json, weights (.bin or .safetensors, in one file or several) and
            tokenizer.model. A vision tower that is not among the weights is read from the
            configuration's mm_vision_tower: a folder, beside ``source`` or in it, or a name on
            the hub.
        target: made if missing.

    Raises:
        SystemExit: a checkpoint of another kind, or one whose weights do not fill the model.
    """
    source, target = Path(source), Path(target)
    settings = json.loads((source / "config.json").read_text())
    if settings["model_type"] not in KINDS:
        raise SystemExit(f"model_type={settings['model_type']!r}: expected {' or '.join(KINDS)}")
    weights = of_package(_read_weights(source))
    tower = _tower(source, settings)
    vision = CLIPVisionConfig.from_pretrained(tower)
    if not any(name.startswith("model.vision_tower.") for name in weights):
        loaded = CLIPVisionModel.from_pretrained(tower).state_dict()
        weights |= {f"model.vision_tower.{name}": weight for name, weight in loaded.items()}

    tokenizer = read_tokenizer(source, settings)
    image_token = tokenizer.convert_tokens_to_ids(IMAGE)
    # As llava-hf: rows up to a multiple of 64, so that the new token has one.
    rows = -(-max(len(tokenizer), settings["vocab_size"]) // 64) * 64
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = _grow(weights[name], rows)

    model = _empty_model(settings, vision, image_token, rows)
    dtype = weights["lm_head.weight"].dtype
    model.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(dtype).save_pretrained(target)
    make_processor(settings, vision, tokenizer).save_pretrained(target)
    return target


def _read_weights(source: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    safe = sorted(source.glob("model*.safetensors"))
    for file in safe or sorted(source.glob("pytorch_model*.bin")):
        weights |= (
            load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
        )
    if not weights:
        raise SystemExit(f"{source}: no model*.safetensors and no pytorch_model*.bin in it")
    return weights


def _tower(source: Path, settings: dict[str, Any]) -> str:
    name = settings["mm_vision_tower"]
    for folder in (Path(name), source / name):
        if folder.is_dir():
            return str(folder)
    return name


def read_tokenizer(source: Path, settings: dict[str, Any]) -> LlamaTokenizer:
    tokenizer = LlamaTokenizer.from_pretrained(
        source,
        pad_token="<unk>",  # as in the released checkpoints
        padding_side="left",  # as batched generation needs it
        model_max_length=settings.get("tokenizer_model_max_length", 2048),
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return tokenizer


def _grow(weight: Tensor, rows: int) -> Tensor:
    """(V, C) -> (rows, C): the mean in the new rows, whose logits are then never the largest."""
    mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def is_next(settings: dict[str, Any]) -> bool:
    return settings.get("image_aspect_ratio") == "anyres"


def pinpoints(settings: dict[str, Any]) -> list[list[int]]:
    """[height, width] as transformers counts; the `llava` package has [width, height]."""
    return [[height, width] for width, height in settings["image_grid_pinpoints"]]


def _empty_model(
    settings: dict[str, Any], vision: CLIPVisionConfig, image_token: int, rows: int
) -> LlavaForConditionalGeneration | LlavaNextForConditionalGeneration:
    known = LlamaConfig().to_dict()
    skipped = ("model_type", "architectures", "transformers_version", "torch_dtype", "dtype")
    text = {k: v for k, v in settings.items() if k in known and k not in skipped}
    shared = {
        "text_config": LlamaConfig(**{**text, "vocab_size": rows}),
        "vision_config": vision,
        "image_token_index": image_token,
        "vision_feature_layer": settings["mm_vision_select_layer"],
        "vision_feature_select_strategy": "default",
    }
    with torch.device("meta"):
        if is_next(settings):
            config = LlavaNextConfig(**shared, image_grid_pinpoints=pinpoints(settings))
            return LlavaNextForConditionalGeneration(config)
        tokens = (vision.image_size // vision.patch_size) ** 2
        return LlavaForConditionalGeneration(LlavaConfig(**shared, image_seq_length=tokens))


def make_processor(
    settings: dict[str, Any], vision: CLIPVisionConfig, tokenizer: LlamaTokenizer
) -> LlavaProcessor | LlavaNextProcessor:
    side = vision.image_size
    image = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    shared = {
        "tokenizer": tokenizer,
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,  # the class token, which "default" takes off again
        "chat_template": CHAT_TEMPLATE,
    }
    if is_next(settings):
        images = LlavaNextImageProcessor(**image, image_grid_pinpoints=pinpoints(settings))
        return LlavaNextProcessor(image_processor=images, **shared)
    return LlavaProcessor(image_processor=CLIPImageProcessor(**image), **shared)
