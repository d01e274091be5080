"""A tiny Video-LLaVA checkpoint in transformers' format; see random_checkpoint.py."""

from __future__ import annotations

from pathlib import Path

import torch
from random_tokenizer import train_tokenizer
from random_weights import randomise
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)

from scripts.convert.to_hf import read_tokenizer

SIDE = 84  # pixels: 6 x 6 tokens, where the released one has 16 x 16


def make_checkpoint(directory: Path, width: int = 32, layers: int = 8, seed: int = 0) -> Path:
    """Write a checkpoint that transformers reads, without a chat template; return its folder."""
    directory = Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = read_tokenizer(train_tokenizer(directory).parent, {})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    VideoLlavaProcessor(
        image_processor=VideoLlavaImageProcessor(**size),
        video_processor=VideoLlavaVideoProcessor(**size),
        tokenizer=tokenizer,
    ).save_pretrained(directory)
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    config = VideoLlavaConfig(
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=4096,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=14,
        ),
        image_token_index=image,
        video_token_index=video,
        image_seq_length=(SIDE // 14) ** 2,
    )
    model = VideoLlavaForConditionalGeneration(config).eval()
    randomise(model)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.half().save_pretrained(directory)  # as the released weights are
    return directory
