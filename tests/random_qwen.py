"""A tiny Qwen2.5-VL checkpoint in transformers' format; see random_checkpoint.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from random_weights import CORPUS, answer_yes_or_no, randomise
from tokenizers import AddedToken
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from scripts.tiny.export import qwen_processor
from scripts.tiny.tokens import QWEN_SPECIAL, qwen_tokenizer

ANSWERS = ("Yes", "No")


def make_checkpoint(directory: Path, width: int = 64, seed: int = 0) -> Path:
    """Write a checkpoint that transformers reads, and return its folder.

    The tower has the real model's 32 blocks, full attention in blocks 8, 16, 24 and 32, patches
    of 14 pixels, windows of 112 and merge size 2.
    """
    directory = Path(directory).resolve()
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer(CORPUS, vocabulary=512)
    tokenizer.add_tokens([AddedToken(answer) for answer in ANSWERS])
    qwen_processor(tokenizer).save_pretrained(directory)
    rope = {"rope_theta": 1000000.0, "mrope_section": [2, 3, 3]}
    ids = ids_of(tokenizer)
    config = Qwen2_5_VLConfig(
        text_config=text_config(tokenizer, width, rope),
        vision_config={
            "depth": 32,
            "hidden_size": width,
            "num_heads": 4,
            "intermediate_size": 2 * width,
            "out_hidden_size": width,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        **placeholders(tokenizer),
    )
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    language, visual = model.model.language_model, model.model.visual
    randomise(language.layers)
    randomise(visual)
    torch.nn.init.normal_(visual.patch_embed.proj.weight, std=0.05)
    answer_yes_or_no(
        language.embed_tokens,
        language.layers,
        visual.merger.mlp[-1],
        model.lm_head,
        tokenizer.convert_tokens_to_ids(list(ANSWERS)),
        ids["<|im_end|>"],
        lambda: _states(model),
    )
    return save(model, tokenizer, directory)


# What Qwen's families have in common.


def ids_of(tokenizer: Any) -> dict[str, int]:
    """Special token -> its id."""
    return dict(zip(QWEN_SPECIAL, tokenizer.convert_tokens_to_ids(list(QWEN_SPECIAL)), strict=True))


def text_config(tokenizer: Any, width: int, rope: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A language model of three layers."""
    ids = ids_of(tokenizer)
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": {"rope_type": "default", **rope},
        **more,
    }


def placeholders(tokenizer: Any) -> dict[str, int]:
    """Ids that a configuration names."""
    ids = ids_of(tokenizer)
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def save(model: Any, tokenizer: Any, directory: Path) -> Path:
    """In bfloat16, as the released weights are."""
    ids = ids_of(tokenizer)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.to(torch.bfloat16).save_pretrained(directory)
    return directory


@torch.no_grad()
def _states(model: Qwen2_5_VLForConditionalGeneration) -> torch.Tensor:
    """(16, C) the last hidden state of one prompt with 16 random images."""
    visual = model.model.visual
    side = 16  # patches
    grid = torch.tensor([[1, side, side]] * 16)
    coarse = torch.randn(16, 3 * 2 * 14**2, 3, 3)
    patches = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    patches = patches.flatten(2).transpose(1, 2).flatten(0, 1)  # (16 * side^2, pixels)
    features = visual(patches, grid).pooler_output.view(
        16, -1, model.config.text_config.hidden_size
    )
    text = model.get_input_embeddings()(torch.arange(300, 330)).expand(16, -1, -1)
    prompt = torch.cat([features, text], dim=1)
    return model.model.language_model(inputs_embeds=prompt).last_hidden_state[:, -1]
