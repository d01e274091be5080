"""A tiny LLaVA checkpoint in transformers' own format; see random_checkpoint.py."""

from __future__ import annotations

from pathlib import Path

import torch
from random_llava import family_settings, make_tower, random_features
from random_tokenizer import ANSWERS, train_tokenizer
from random_weights import answer_yes_or_no, randomise
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from scripts.convert.to_hf import make_processor, pinpoints, read_tokenizer


def make_checkpoint(
    directory: Path,
    family: str = "llava",
    image_size: int = 336,
    layers: int = 24,
    width: int = 64,
    seed: int = 0,
) -> Path:
    """Write a checkpoint in the llava-hf format, and return its folder.

    Args:
        directory: where; made if missing.
        family: "llava" or "llava_next".
        image_size, layers, width, seed: as of random_llava.py's.
    """
    directory = Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    settings = family_settings(family, image_size)
    tower = make_tower(image_size, layers, width)
    train_tokenizer(directory)
    tokenizer = read_tokenizer(directory, settings)
    make_processor(settings, tower.config, tokenizer).save_pretrained(directory)
    shared = {
        "text_config": LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=4096,
        ),
        "vision_config": tower.config,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    if family == "llava_next":
        config = LlavaNextConfig(**shared, image_grid_pinpoints=pinpoints(settings))
        model = LlavaNextForConditionalGeneration(config).eval()
        torch.nn.init.normal_(model.model.image_newline)
    else:
        config = LlavaConfig(**shared, image_seq_length=(image_size // 14) ** 2)
        model = LlavaForConditionalGeneration(config).eval()
    inner = model.model
    inner.vision_tower.load_state_dict(tower.state_dict())
    randomise(inner.language_model.layers)
    randomise(inner.multi_modal_projector)
    answer_yes_or_no(
        inner.language_model.embed_tokens,
        inner.language_model.layers,
        inner.multi_modal_projector.linear_2,
        model.lm_head,
        tokenizer.convert_tokens_to_ids(list(ANSWERS)),
        tokenizer.eos_token_id,
        lambda: _states(model, tower),
    )
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.half().save_pretrained(directory)  # as the released weights are
    return directory


@torch.no_grad()
def _states(model: torch.nn.Module, tower: torch.nn.Module) -> torch.Tensor:
    """(16, C) the last hidden state of one prompt with 16 random images."""
    inner = model.model
    features = inner.multi_modal_projector(random_features(tower))
    text = model.get_input_embeddings()(torch.arange(300, 330)).expand(len(features), -1, -1)
    prompt = torch.cat([features, text], dim=1)
    return inner.language_model(inputs_embeds=prompt).last_hidden_state[:, -1]
