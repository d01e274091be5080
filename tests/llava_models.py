"""Tiny LLaVA models, prompts for them, and the pruned forward done by hand."""

from __future__ import annotations

import functools
import zlib
from pathlib import Path

import torch
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import get_anyres_image_grid_shape, process_images
from llava.model.builder import load_pretrained_model
from PIL import Image

from hiprune import select_tokens

SIDE, LAYERS, OUTPUT_LAYER, OBJECT_LAYER, ALPHA = 6, 6, 5, 3, 0.5
TOKENS = SIDE * SIDE
# (width, height): 5, 3, 4 and 3 views under anyres
SIZES = [(160, 160), (168, 84), (400, 90), (84, 168)]


@functools.cache
def load(path: Path, attention: str = "eager"):
    """Model and image processor; shared by the tests, which give it back unpatched."""
    _, model, processor, _ = load_pretrained_model(
        str(path), None, path.name, device_map="cpu", attn_implementation=attention
    )
    model = model.float().eval()
    model.config.tokenizer_padding_side = "left"  # as batched generation needs it
    return model, processor


def picture(index: int) -> Image.Image:
    """Coloured blobs that differ with the index."""
    generator = torch.Generator().manual_seed(index)
    coarse = torch.randint(0, 256, (5, 5, 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(coarse.numpy()).resize(SIZES[index % len(SIZES)], Image.BICUBIC)
    return image


def inputs(model, processor, images_per_prompt: list[int], first: int = 0) -> dict:
    """Arguments of the model for a batch of prompts with so many images each.

    A prompt without an image among others with one gets a blank, as llava asks for.
    """
    rows, pictures = [], []
    for prompt, count in enumerate(images_per_prompt):
        words = torch.Generator().manual_seed(zlib.crc32(b"%d" % (prompt + first)))
        row = [1]
        for _ in range(count):
            row += [*torch.randint(300, 500, (3,), generator=words).tolist(), IMAGE_TOKEN_INDEX]
            pictures.append(picture(len(pictures) + first))
        row += torch.randint(300, 500, (4 + prompt,), generator=words).tolist()
        rows.append(row)
        if count == 0 and any(images_per_prompt):
            pictures.append(picture(99))
    width = max(map(len, rows))
    input_ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]).bool()
    arguments = {"input_ids": input_ids, "attention_mask": mask, "images": None}
    if pictures:
        arguments["images"] = process_images(pictures, processor, model.config)
        arguments["image_sizes"] = [image.size for image in pictures]
    return arguments


@torch.no_grad()
def features_by_hand(model, images, sizes, retention: int) -> list[torch.Tensor]:
    """Per image the projected features that HiPrune keeps, from every layer's whole N x N map."""
    tower = model.get_vision_tower()
    if not isinstance(images, list) and images.ndim == 4:
        images = [image[None] for image in images]
    kept = []
    for views, size in zip(images, sizes, strict=True):
        out = tower.vision_tower(views, output_hidden_states=True, output_attentions=True)
        scores = [
            out.attentions[layer - 1].mean(dim=(1, 2))[:, 1:]
            for layer in (OBJECT_LAYER, OUTPUT_LAYER)
        ]
        selection = select_tokens(
            *scores, columns=SIDE, budget=retention // len(views), alpha=ALPHA
        )
        features = model.model.mm_projector(out.hidden_states[-2][:, 1:])  # (V, N, C)
        picked = [features[0, i] for i in selection.indices[0]]
        if len(views) > 1:
            columns, rows = get_anyres_image_grid_shape(
                size, model.config.image_grid_pinpoints, tower.config.image_size
            )
            # Every pixel row of patches of the merged picture, from left to right.
            for y in range(rows * SIDE):
                for x in range(columns * SIDE):
                    view = 1 + (y // SIDE) * columns + x // SIDE
                    token = (y % SIDE) * SIDE + x % SIDE
                    if selection.keep[view, token]:
                        picked.append(features[view, token])
        kept.append(torch.stack(picked))
    return kept


@torch.no_grad()
def embeddings_by_hand(model, arguments: dict, features: list[torch.Tensor] | None):
    """Left-padded embeddings and mask with the features in the place of the placeholders."""
    features = iter(features or [])
    rows = []
    for ids, mask in zip(arguments["input_ids"], arguments["attention_mask"], strict=True):
        ids = ids[mask]
        row, has_image = [], False
        for token in ids:
            if token == IMAGE_TOKEN_INDEX:
                row.append(next(features))
                has_image = True
            else:
                row.append(model.model.embed_tokens(token[None]))
        if not has_image and arguments["images"] is not None:
            next(features)  # the blank
        rows.append(torch.cat(row))
    width = max(map(len, rows))
    embeds = torch.stack([torch.nn.functional.pad(r, (0, 0, width - len(r), 0)) for r in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return embeds, mask
