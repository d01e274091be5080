"""From transformers' own checkpoints (llava-hf) to the `llava` package's (liuhaotian)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPImageProcessor

from scripts.convert.names import TOWER, of_files


def convert(source: Path, target: Path) -> Path:
    """Write ``source`` (llava-hf format) to ``target`` (liuhaotian format) and return ``target``.

    Args:
        source: folder with config.json, model*.safetensors and tokenizer.model.
        target: made if missing; the package wants "llava" in its name. The vision tower lies in
            it, and the configuration names it by its absolute path: convert again after a move.

    Raises:
        SystemExit: a checkpoint of another kind, or a file that is missing.
    """
    source, target = Path(source), Path(target).resolve()
    config = json.loads((source / "config.json").read_text())
    if config.get("model_type") not in ("llava", "llava_next"):
        raise SystemExit(f"model_type={config.get('model_type')!r}: expected llava or llava_next")
    pieces = source / "tokenizer.model"
    if not pieces.is_file():
        raise SystemExit(f"{pieces}: missing; the llava package reads its tokenizer from it")
    weights = _read_weights(source)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pieces, target / "tokenizer.model")
    _write(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "legacy": True,
            "pad_token": "<unk>",
            "model_max_length": 2048,
        },
    )
    tower = {n.removeprefix(TOWER): w for n, w in weights.items() if n.startswith(TOWER)}
    _write_tower(target / "vision_tower", tower, config["vision_config"])
    rest = weights
    if config["model_type"] != "llava_next":  # whose released checkpoints hold the tower as well
        rest = {name: weight for name, weight in weights.items() if not name.startswith(TOWER)}

    rows = sentencepiece.SentencePieceProcessor(model_file=str(pieces)).get_piece_size()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rest[name] = rest[name][:rows].clone()  # without the image token and the filling rows
    save_file(rest, target / "model.safetensors", metadata={"format": "pt"})
    _write(target / "config.json", _settings(config, target, rows))
    return target


def _read_weights(source: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in sorted(source.glob("model*.safetensors")):
        weights |= of_files(load_file(file))
    if not weights:
        raise SystemExit(f"{source}: no model*.safetensors in it")
    return weights


def _write_tower(folder: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    save_file(
        {f"vision_model.{name}": weight for name, weight in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    _write(folder / "config.json", {**config, "architectures": ["CLIPVisionModel"]})
    side = config["image_size"]
    size = {"shortest_edge": side}
    CLIPImageProcessor(size=size, crop_size={"height": side, "width": side}).save_pretrained(folder)


def _settings(config: dict[str, Any], target: Path, rows: int) -> dict[str, Any]:
    text = config["text_config"]
    kept = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
    )
    rope = text.get("rope_parameters") or text
    settings = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        **{name: text[name] for name in kept if name in text},
        "rope_theta": rope.get("rope_theta", 10000.0),
        "vocab_size": rows,
        "torch_dtype": "float16",
        "pad_token_id": 0,
        "mm_vision_tower": str(target / "vision_tower"),
        "mm_hidden_size": config["vision_config"]["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config["vision_feature_layer"],
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tokenizer_padding_side": "right",
    }
    if config["model_type"] == "llava":
        return settings | {
            "image_aspect_ratio": "pad",
            "mm_patch_merge_type": "flat",
            "tokenizer_model_max_length": 2048,
        }
    return settings | {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        # [width, height] as the package counts.
        "image_grid_pinpoints": [[w, h] for h, w in config["image_grid_pinpoints"]],
        "tokenizer_model_max_length": 4096,
        "unfreeze_mm_vision_tower": True,
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
