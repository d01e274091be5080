"""Tiny InternVL models, prompts for them, and the pruned forward done by hand."""

from __future__ import annotations

import functools
from itertools import groupby

import torch
import transformers
from llava_hf_models import IMAGE, PAD, STEPS, decode_by_hand, greedy, picture  # noqa: F401
from transformers import LlamaConfig

from hiprune import select_tokens

PIXELS, PATCHES, LAYERS, WIDTH, OBJECT_LAYER, ALPHA = 84, 6, 4, 32, 2, 0.5
TILES = [3, 1, 2, 4]  # of images
VIDEO = IMAGE - 1


@functools.cache
def load(family: str, attention: str = "sdpa", **vision):
    """A model with random weights, the same for every kernel of the vision tower."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=IMAGE + 1, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=PAD, max_position_embeddings=4096,
    )  # fmt: skip
    tower = {
        "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "image_size": PIXELS, "patch_size": 14,
    }  # fmt: skip
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(**tower | vision),
        text_config=text, image_token_id=IMAGE, image_seq_length=9,
    )  # fmt: skip
    model = transformers.InternVLForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:  # attention that has peaks, answers that differ
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            torch.nn.init.normal_(parameter, std=gain * parameter.shape[1] ** -0.5)
        elif any(part in name for part in ("lambda", "position_emb", "cls_token", "_norm.weight")):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
        elif "patch_embeddings" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.lm_head.weight.data[[IMAGE, VIDEO]] = 0  # no answer holds a placeholder
    model.set_attn_implementation({"vision_config": attention})
    return model.float().eval()


def inputs(family: str, images_per_prompt: list[int], first: int = 0, video_frames: int = 0):
    """A left-padded batch of prompts with so many images each, text before, between and after.

    ``video_frames``: a video of so many frames at the end of every prompt; of InternVL each frame
    after some text.
    """
    rows, pixels, number = [], [], first
    for prompt, count in enumerate(images_per_prompt):
        words = torch.Generator().manual_seed(1000 + prompt + first)

        def text(count, words=words):
            return torch.randint(2, 300, (count,), generator=words).tolist()

        row = [1]
        for _ in range(count):
            tiles = TILES[number % len(TILES)]
            row += text(3) + [IMAGE] * (tiles * 9)
            pixels += [picture(10 * number + tile) for tile in range(tiles)]
            number += 1
        for frame in range(video_frames):
            row += text(2) + [IMAGE] * 9
            pixels.append(picture(500 + 10 * prompt + frame))
        rows.append(row + text(4 + prompt))
    width = max(map(len, rows))
    arguments = {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
    }
    if pixels:
        arguments["pixel_values"] = torch.stack(pixels)
    return arguments


def tiles_of(arguments: dict) -> list[int]:
    """Of each image, by the runs of its placeholders."""
    rows = arguments["input_ids"].tolist()
    return [len(list(g)) // 9 for row in rows for token, g in groupby(row) if token == IMAGE]


def features_by_hand(family, model, arguments: dict, retention) -> list[torch.Tensor]:
    """Per image the projected features that HiPrune keeps, from every layer's whole N x N map.

    ``model``: one whose tower attends eagerly.
    """
    inner, kept = model.model, []
    counts = tiles_of(arguments) if "pixel_values" in arguments else []
    for tiles in arguments["pixel_values"].split(counts) if counts else ():
        out = inner.vision_tower(tiles, output_attentions=True)
        total = 9 * len(tiles)
        budget = retention if isinstance(retention, int) else max(1, round(retention * total))
        budget = min(budget, total) // len(tiles)
        scores, groups = [], []
        for y in range(3):
            for x in range(3):
                at = 2 * y * PATCHES + 2 * x  # the upper left patch of four
                groups.append([at, at + 1, at + PATCHES, at + PATCHES + 1])
        for layer in (OBJECT_LAYER, LAYERS):
            received = out.attentions[layer - 1].mean(dim=(1, 2))[:, 1:]
            scores.append(torch.stack([received[:, group].mean(dim=1) for group in groups], dim=1))
        selection = select_tokens(*scores, columns=3, budget=budget, alpha=ALPHA)
        states = out.last_hidden_state[:, 1:]
        picked = [
            torch.cat([states[tile, patch] for patch in groups[token]])
            for tile, tokens in enumerate(selection.indices.tolist())
            for token in tokens
        ]
        kept.append(inner.multi_modal_projector(torch.stack(picked)))
    return kept


def prompt_by_hand(model, arguments: dict, features: list) -> dict:
    """Left-padded embeddings, mask and positions of the pruned prompts."""
    embed, features, rows = model.get_input_embeddings(), iter(features), []
    for ids, mask in zip(arguments["input_ids"], arguments["attention_mask"], strict=True):
        row = []
        for token, run in groupby(ids[mask.bool()].tolist()):
            visual = token in (IMAGE, VIDEO)
            row.append(next(features) if visual else embed(torch.tensor(list(run))))
        rows.append(torch.cat(row))
    width = max(map(len, rows))
    pads = [width - len(row) for row in rows]
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
    return {
        "inputs_embeds": torch.stack(
            [torch.nn.functional.pad(r, (0, 0, p, 0)) for r, p in zip(rows, pads, strict=True)]
        ),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }


def eager(model):
    """The tower's maps can then be looked at."""
    model.set_attn_implementation({"vision_config": "eager"})
    return model
