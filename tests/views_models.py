"""Tiny InternVL, LLaVA-OneVision and Video-LLaVA models, and prompts for them."""

from __future__ import annotations

import functools
import inspect
from itertools import groupby

import torch
import transformers
from llava_hf_models import IMAGE, PAD
from llava_hf_models import picture as large
from transformers import LlamaConfig

VIDEO = IMAGE - 1
LAYERS, WIDTH = 4, 32
SIDE = {"internvl": 6, "llava_onevision": 5, "video_llava": 5}  # patches, 14 pixels each
TOKENS = {"internvl": 9, "llava_onevision": 25, "video_llava": 25}  # of a view
# Of the largest image: 12 tiles and a thumbnail; 1 + 9 views that count; one view.
MOST = {"internvl": 13 * 9, "llava_onevision": 10 * 25, "video_llava": 25}
TILES = [3, 1, 2, 4]  # of InternVL's images
# Of LLaVA-OneVision's: (height, width), views in rows and columns, and what the unpatched model
# makes of them: the base view, and un-padded rows with a newline each.
SIZES = [(70, 140), (140, 70), (100, 140)]
GRIDS = [(1, 2), (2, 1), (2, 2)]
PLACEHOLDERS = [25 + 5 * 11, 25 + 10 * 6, 25 + 8 * 11]


def pixels_name(family: str) -> str:
    """The images' argument, which transformers 5.23 renames for Video-LLaVA."""
    known = inspect.signature(transformers.VideoLlavaForConditionalGeneration.forward).parameters
    old = family == "video_llava" and "pixel_values" not in known
    return "pixel_values_images" if old else "pixel_values"


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
        "num_attention_heads": 2, "image_size": 14 * SIDE[family], "patch_size": 14,
    } | vision  # fmt: skip
    ids = {"image_token_index": IMAGE, "video_token_index": VIDEO}
    if family == "internvl":
        made = transformers.InternVLForConditionalGeneration
        tower = transformers.InternVLVisionConfig(**tower)
        more = {"image_token_id": IMAGE, "image_seq_length": TOKENS[family]}
    elif family == "llava_onevision":
        made = transformers.LlavaOnevisionForConditionalGeneration
        tower = transformers.SiglipVisionConfig(**tower, vision_use_head=False)
        pinpoints = [[70 * rows, 70 * columns] for rows, columns in GRIDS]
        more = {**ids, "image_grid_pinpoints": [*pinpoints, [210, 280]]}
    else:
        made = transformers.VideoLlavaForConditionalGeneration
        tower = transformers.CLIPVisionConfig(**tower)
        more = {**ids, "image_seq_length": TOKENS[family]}
    model = made(made.config_class(vision_config=tower, text_config=text, **more))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "position" not in name:  # attention that has peaks
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            torch.nn.init.normal_(parameter, std=gain * parameter.shape[1] ** -0.5)
        elif any(part in name for part in ("lambda", "position", "cls_token", "_norm.weight")):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
        elif "patch_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.lm_head.weight.data[[IMAGE, VIDEO]] = 0  # no answer holds a placeholder
    model.set_attn_implementation({"vision_config": attention})
    return model.float().eval()


def picture(family: str, number: int) -> torch.Tensor:
    side = 14 * SIDE[family]
    return large(number)[..., :side, :side]


def inputs(family: str, images_per_prompt: list[int], first: int = 0, video_frames: int = 0):
    """A left-padded batch of prompts with so many images each, text before, between and after.

    ``video_frames``: a video of so many frames at the end of every prompt; of InternVL each frame
    after some text.
    """
    tokens, number = TOKENS[family], first
    rows, images, sizes, videos = [], [], [], []
    for prompt, count in enumerate(images_per_prompt):
        words = torch.Generator().manual_seed(1000 + prompt + first)

        def text(count, words=words):
            return torch.randint(2, 300, (count,), generator=words).tolist()

        row = [1]
        for _ in range(count):
            views, length = 1, tokens
            if family == "internvl":
                views = TILES[number % len(TILES)]
                length = views * tokens
            elif family == "llava_onevision":
                rows_, columns = GRIDS[number % 3]
                views = 1 + rows_ * columns if count == 1 else 1
                length = PLACEHOLDERS[number % 3] if count == 1 else tokens + 1  # a newline
            row += text(3) + [IMAGE] * length
            images.append(torch.stack([picture(family, 10 * number + v) for v in range(views)]))
            sizes.append(SIZES[number % 3])
            number += 1
        if video_frames:
            frames = [picture(family, 500 + 10 * prompt + frame) for frame in range(video_frames)]
            if family == "internvl":
                for frame in frames:
                    row += text(2) + [IMAGE] * tokens
                    images.append(frame[None])
            else:
                length = 9 * video_frames + 1 if family == "llava_onevision" else 26 * video_frames
                row += text(2) + [VIDEO] * length
                videos.append(torch.stack(frames))
        rows.append(row + text(4 + prompt))
    width = max(map(len, rows))
    arguments = {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
    }
    if images and family == "llava_onevision":
        most = max(map(len, images))  # as the image processor fills up
        arguments["pixel_values"] = torch.stack(
            [torch.cat([p, torch.zeros(most - len(p), *p.shape[1:])]) for p in images]
        )
        arguments["image_sizes"] = torch.tensor(sizes)
        arguments["batch_num_images"] = torch.tensor(images_per_prompt)
    elif images:
        arguments[pixels_name(family)] = torch.cat(images)
    if videos:
        arguments["pixel_values_videos"] = torch.stack(videos)
    return arguments


def images_of(family: str, arguments: dict) -> list[torch.Tensor]:
    """(views, 3, H, W) of each image."""
    pixels = arguments.get(pixels_name(family))
    if pixels is None:
        return []
    if family == "video_llava":
        return list(pixels.unsqueeze(1))
    if family == "llava_onevision":
        grids = [grid for grid in grids_of(arguments)]
        return [
            views[: 1 if grid is None else 1 + grid[0] * grid[1]]
            for views, grid in zip(pixels, grids, strict=True)
        ]
    rows, tokens = arguments["input_ids"].tolist(), TOKENS[family]
    runs = [len(list(run)) for row in rows for token, run in groupby(row) if token == IMAGE]
    return list(pixels.split([run // tokens for run in runs]))


def grids_of(arguments: dict) -> list[tuple[int, int] | None]:
    """Of LLaVA-OneVision's images: rows and columns of views; None of one that is not alone."""
    counts = arguments["batch_num_images"].tolist()
    alone = [count == 1 for count in counts for _ in range(count)]
    sizes = [SIZES.index(tuple(size)) for size in arguments["image_sizes"].tolist()]
    return [GRIDS[number] if one else None for number, one in zip(sizes, alone, strict=True)]


def cut(family: str, arguments: dict, start: int, stop: int) -> dict:
    """The arguments that bring these images alone."""
    if family != "llava_onevision":
        return {pixels_name(family): torch.cat(images_of(family, arguments)[start:stop])}
    found = {name: arguments[name][start:stop] for name in ("pixel_values", "image_sizes")}
    return found | {"batch_num_images": torch.tensor([stop - start])}


def merge_spatially(image_features, image_sizes, **_) -> tuple[list, torch.Tensor]:
    """In place of LLaVA-OneVision's pack_image_features: no un-padding, scaling or newlines."""
    packed = []
    for views, size in zip(image_features, image_sizes, strict=True):  # (V, N, C)
        if len(views) > 1:
            grid = GRIDS[SIZES.index(tuple(size.tolist()))]
            merged = views[1:].unflatten(0, grid).unflatten(2, (5, 5))
            views = torch.cat([views[0], merged.transpose(1, 2).flatten(0, 3)])
        packed.append(views.flatten(0, -2))
    return packed, torch.tensor([len(image) for image in packed])


def spatial_prompt(arguments: dict) -> dict:
    """A prompt of LLaVA-OneVision with the placeholders that :func:`merge_spatially` needs."""
    images = iter(images_of("llava_onevision", arguments))
    lines = []
    for ids, mask in zip(arguments["input_ids"].tolist(), arguments["attention_mask"], strict=True):
        line = []  # the position that each one comes from
        for at in range(int(mask.argmax()), len(ids)):  # without the padding on the left
            if ids[at] != IMAGE:
                line.append(at)
            elif ids[at - 1] != IMAGE:
                line += [at] * (25 * len(next(images)))
        lines.append(line)
    width = max(map(len, lines))
    columns = torch.tensor([[0] * (width - len(line)) + line for line in lines])
    real = torch.arange(width) >= torch.tensor([[width - len(line)] for line in lines])
    columns, real = (x.to(arguments["input_ids"].device) for x in (columns, real))
    padding = {"input_ids": PAD, "attention_mask": 0, "labels": -100}
    return arguments | {
        name: arguments[name].gather(1, columns).masked_fill(~real, pad)
        for name, pad in padding.items()
        if name in arguments
    }
