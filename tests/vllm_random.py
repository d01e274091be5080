"""Qwen2-VL and Qwen3-VL (also with experts) of random weights for vLLM, with the tokenizer of the
small Qwen2.5-VL.

Heads of 32 channels, the fewest that vLLM's attention takes on a CPU.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

from scripts.benchmarks import QWEN_TINY

WIDTH, BLOCKS = 64, 8
PATCH = {"qwen2_vl": 14, "qwen3_vl": 16, "qwen3_vl_moe": 16}
CLASSES = {"qwen2_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VLMoe"}
IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def make_checkpoint(folder: Path, family: str) -> Path:
    """Write a checkpoint that transformers and vLLM read; the same each time."""
    torch.manual_seed(0)
    trained = transformers.AutoConfig.from_pretrained(QWEN_TINY.checkpoint)
    text = {
        "vocab_size": trained.text_config.vocab_size, "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6],
        },
        **{f"{name}_token_id": getattr(trained.text_config, f"{name}_token_id")
           for name in ("bos", "eos", "pad")},
    }  # fmt: skip
    vision = {
        "depth": BLOCKS, "num_heads": 2, "hidden_size": WIDTH, "patch_size": PATCH[family],
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    if family == "qwen2_vl":
        vision |= {"embed_dim": WIDTH, "mlp_ratio": 2}
    else:
        text |= {"head_dim": 32}
        if family == "qwen3_vl_moe":
            text |= {
                "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 2 * WIDTH,
                "norm_topk_prob": True,  # what transformers does, and does not write
            }  # fmt: skip
        text["rope_parameters"]["mrope_interleaved"] = True
        vision |= {
            "intermediate_size": 2 * WIDTH, "out_hidden_size": WIDTH,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [1, 3, 5],
        }  # fmt: skip
    name = CLASSES[family]
    model_class = getattr(transformers, f"{name}ForConditionalGeneration")
    model = model_class(
        model_class.config_class(
            text_config=text,
            vision_config=vision,
            tie_word_embeddings=False,
            **{each: getattr(trained, each) for each in IDS},
        )
    )
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    model.generation_config.eos_token_id = None  # random weights go on to the full length
    model.generation_config.pad_token_id = text["pad_token_id"]
    model.save_pretrained(folder)
    _as_released(folder / "model.safetensors")
    processor = transformers.AutoProcessor.from_pretrained(QWEN_TINY.checkpoint)
    limits = {"shortest_edge": 56 * 56, "longest_edge": 1003520}
    kind = name.removesuffix("Moe")
    getattr(transformers, f"{kind}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(size=limits, patch_size=PATCH[family]),
        tokenizer=processor.tokenizer,
        video_processor=getattr(transformers, f"{kind}VideoProcessor")(),
        chat_template=processor.chat_template,
    ).save_pretrained(folder)
    return folder


def _as_released(file: Path) -> None:
    """Experts' matrices the other way round: what transformers 5 saves, vLLM 0.32 does not read."""
    weights = load_file(file)
    turned = {name: each.mT.contiguous() for name, each in weights.items() if ".experts." in name}
    if turned:
        save_file(weights | turned, file, {"format": "pt"})
