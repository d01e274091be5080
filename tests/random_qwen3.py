"""A tiny Qwen3-VL checkpoint in transformers' format; see random_checkpoint.py."""

from __future__ import annotations

from pathlib import Path

import torch
from random_qwen import placeholders, save, text_config
from random_weights import CORPUS, randomise
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from scripts.tiny.tokens import QWEN_TEMPLATE, qwen_tokenizer


def make_checkpoint(directory: Path, width: int = 32, seed: int = 0) -> Path:
    """Write a checkpoint that transformers reads, and return its folder.

    The tower has 12 blocks, half of Qwen3-VL-4B's, patches of 16 pixels, merge size 2, and
    DeepStack after three of its blocks.
    """
    directory = Path(directory).resolve()
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer(CORPUS, vocabulary=512)
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=QWEN_TEMPLATE,
    )
    processor.save_pretrained(directory)
    rope = {"rope_theta": 5000000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=text_config(tokenizer, width, rope, head_dim=16),
        vision_config={
            "depth": 12,
            "hidden_size": width,
            "num_heads": 2,
            "intermediate_size": 2 * width,
            "out_hidden_size": width,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [2, 5, 8],
        },
        **placeholders(tokenizer),
    )
    model = Qwen3VLForConditionalGeneration(config).eval()
    randomise(model)
    return save(model, tokenizer, directory)
