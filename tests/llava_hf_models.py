"""Tiny LLaVA models of transformers, prompts for them, and the pruned forward done by hand."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from hiprune import HiPruneConfig, select_tokens

PIXELS, SIDE, LAYERS, OUTPUT_LAYER, OBJECT_LAYER, ALPHA = 84, 6, 6, 5, 3, 0.5
TOKENS = SIDE * SIDE
FAMILIES = {"llava": TOKENS, "llava_next": 5 * TOKENS}  # -> the most tokens of an image
IMAGE, PAD, WIDTH, STEPS = 319, 0, 32, 5
# (height, width) of images: grids of 2 x 2, 1 x 2, 1 x 3 and 2 x 1 views
SIZES = [(160, 160), (84, 168), (90, 400), (168, 84)]
GRIDS = [(2, 2), (1, 2), (1, 3), (2, 1)]
# What the unpatched LLaVA-NeXT makes of them: base, un-padded rows, a newline each
PLACEHOLDERS = [36 + 12 * 13, 36 + 6 * 13, 36 + 4 * 19, 36 + 12 * 7]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models this small lose more to threads that wait for each other than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def load(family: str, attention: str = "eager"):
    """A model with random weights, the same for every kernel of the vision tower."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=4, image_size=PIXELS, patch_size=14, projection_dim=WIDTH,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=IMAGE + 1, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=PAD, max_position_embeddings=4096,
    )  # fmt: skip
    settings = {"vision_config": vision, "text_config": text, "image_token_index": IMAGE}
    if family == "llava":
        model = LlavaForConditionalGeneration(LlavaConfig(**settings, image_seq_length=TOKENS))
    else:
        pinpoints = [[PIXELS * h, PIXELS * w] for h, w in [*GRIDS, (3, 1)]]
        config = LlavaNextConfig(**settings, image_grid_pinpoints=pinpoints)
        model = LlavaNextForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:  # attention that has peaks, answers that differ
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            torch.nn.init.normal_(parameter, std=gain * parameter.shape[1] ** -0.5)
    model.lm_head.weight.data[IMAGE] = 0  # no answer holds a placeholder
    torch.nn.init.normal_(model.model.vision_tower.embeddings.patch_embedding.weight, std=0.1)
    model.set_attn_implementation({"vision_config": attention})
    assert model.model.vision_tower.config._attn_implementation == attention
    return model.float().eval()


def picture(index: int) -> torch.Tensor:
    """(3, 84, 84) smooth noise of its own."""
    generator = torch.Generator().manual_seed(index)
    coarse = torch.randn(1, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, (PIXELS, PIXELS), mode="bilinear")[0]


def inputs(family: str, images_per_prompt: list[int], first: int = 0) -> dict:
    """Arguments of the model for a batch of prompts with so many images each."""
    rows, pixels, sizes = [], [], []
    for prompt, count in enumerate(images_per_prompt):
        words = torch.Generator().manual_seed(1000 + prompt + first)
        row = [1]
        for _ in range(count):
            number = len(sizes) + first
            views = 1
            length = TOKENS
            if family == "llava_next":
                rows_, columns = GRIDS[number % 4]
                views, length = 1 + rows_ * columns, PLACEHOLDERS[number % 4]
            row += torch.randint(2, 300, (3,), generator=words).tolist() + [IMAGE] * length
            sizes.append(SIZES[number % 4])
            pixels.append(torch.stack([picture(10 * number + view) for view in range(views)]))
        row += torch.randint(2, 300, (4 + prompt,), generator=words).tolist()
        rows.append(row)
    width = max(map(len, rows))
    pads = [[PAD] * (width - len(row)) for row in rows]
    arguments = {
        "input_ids": torch.tensor([pad + row for pad, row in zip(pads, rows, strict=True)]),
        "attention_mask": torch.tensor(
            [[0] * len(pad) + [1] * len(row) for pad, row in zip(pads, rows, strict=True)]
        ),
    }
    if pixels and family == "llava":
        arguments["pixel_values"] = torch.cat(pixels)
    elif pixels:
        most = max(map(len, pixels))  # as the image processor fills up
        arguments["pixel_values"] = torch.stack(
            [torch.cat([p, torch.zeros(most - len(p), *p.shape[1:])]) for p in pixels]
        )
        arguments["image_sizes"] = torch.tensor(sizes)
    return arguments


def config(retention) -> HiPruneConfig:
    return HiPruneConfig(retention=retention, alpha=ALPHA, object_layer=OBJECT_LAYER)


def forward(model, arguments: dict, **more):
    with torch.no_grad():
        return model(**arguments, **more)


def generate(model, arguments: dict, **settings):
    # Without an end token random weights go on to the full length, for more to compare.
    defaults = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None}
    return model.generate(**arguments, **{**defaults, "pad_token_id": PAD, **settings})


def grid_of(size: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of views of an image of this (height, width), one of SIZES."""
    return GRIDS[SIZES.index(tuple(size.tolist()))]


def greedy(answer: list[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


@torch.no_grad()
def features_by_hand(family: str, arguments: dict, retention: int, model=None) -> list:
    """Per image the projected features that HiPrune keeps, from every layer's whole N x N map.

    ``model``: one whose tower attends eagerly; that of :func:`load` unless given.
    """
    inner = (load(family, "eager") if model is None else model).model
    kept = []
    for number, views in enumerate(arguments.get("pixel_values", ())):
        rows, columns = (0, 0) if family == "llava" else grid_of(arguments["image_sizes"][number])
        views = views[None] if family == "llava" else views[: 1 + rows * columns]
        out = inner.vision_tower(views, output_hidden_states=True, output_attentions=True)
        scores = [
            out.attentions[layer - 1].mean(dim=(1, 2))[:, 1:]
            for layer in (OBJECT_LAYER, OUTPUT_LAYER)
        ]
        selection = select_tokens(
            *scores, columns=SIDE, budget=retention // len(views), alpha=ALPHA
        )
        features = inner.multi_modal_projector(out.hidden_states[-2][:, 1:])  # (V, N, C)
        picked = [features[0, i] for i in selection.indices[0]]
        for y in range(rows * SIDE):  # the merged picture, row by row
            for x in range(columns * SIDE):
                view, token = 1 + (y // SIDE) * columns + x // SIDE, (y % SIDE) * SIDE + x % SIDE
                if selection.keep[view, token]:
                    picked.append(features[view, token])
        kept.append(torch.stack(picked))
    return kept


def merge_spatially(image_features, image_sizes, **_) -> tuple[list, torch.Tensor]:
    """In place of LLaVA-NeXT's pack_image_features: the paper's merge type `spatial`."""
    packed = []
    for views, size in zip(image_features, image_sizes, strict=True):  # (V, N, C)
        grid = views[1:].unflatten(0, grid_of(size)).unflatten(2, (SIDE, SIDE))
        merged = grid.transpose(1, 2).flatten(0, 3)  # rows, columns of views and tokens -> raster
        packed.append(torch.cat([views[0], merged]))
    return packed, torch.tensor([len(image) for image in packed])


def spatial_prompt(arguments: dict) -> dict:
    """A prompt of LLaVA-NeXT with the placeholders that :func:`merge_spatially` needs."""
    tokens = iter(
        TOKENS * (1 + rows * columns)
        for rows, columns in map(grid_of, arguments.get("image_sizes", ()))
    )
    lines = []
    for ids in arguments["input_ids"].tolist():
        line = []  # the position that each one comes from
        for at, token in enumerate(ids):
            if token != IMAGE:
                line.append(at)
            elif ids[at - 1] != IMAGE:
                line += [at] * next(tokens)
        lines.append(line)
    width = max(map(len, lines))
    columns = torch.tensor([[0] * (width - len(line)) + line for line in lines])
    columns = columns.to(arguments["input_ids"].device)
    names = ("input_ids", "attention_mask", "labels")  # a row that is shorter is padded on the left
    return arguments | {n: arguments[n].gather(1, columns) for n in names if n in arguments}


@torch.no_grad()
def prompt_by_hand(family: str, arguments: dict, features: list, labels=None, model=None) -> dict:
    """Left-padded embeddings, mask and positions (and labels) of the pruned prompts."""
    embed = (load(family, "eager") if model is None else model).get_input_embeddings()
    features, rows, targets = iter(features), [], []
    for number, ids in enumerate(arguments["input_ids"]):
        row, target, at = [], [], int((arguments["attention_mask"][number] == 0).sum())
        while at < len(ids):
            if ids[at] == IMAGE:
                image = next(features)
                row.append(image)
                target += [-100] * len(image)
                run = 0  # as many placeholders as follow; images never touch in these prompts
                while ids[at + run] == IMAGE:
                    run += 1
                at += run
            else:
                row.append(embed(ids[at][None]))
                target.append(-100 if labels is None else int(labels[number, at]))
                at += 1
        rows.append(torch.cat(row))
        targets.append(target)
    width = max(map(len, rows))
    pads = [width - len(row) for row in rows]
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
    made = {
        "inputs_embeds": torch.stack(
            [torch.nn.functional.pad(r, (0, 0, p, 0)) for r, p in zip(rows, pads, strict=True)]
        ),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }
    if labels is not None:
        made["labels"] = torch.tensor([[-100] * p + t for p, t in zip(pads, targets, strict=True)])
    return made


@torch.no_grad()
def decode_by_hand(model, prompt: dict, steps: int, pick=greedy) -> torch.Tensor:
    """(B, steps) answers, the whole sequence run anew for every token.

    ``pick``: (answer so far, (B, V) logits) -> (B,) ids; the likeliest unless given.
    """
    prompt, answer = copy.copy(prompt), []
    for _ in range(steps):
        logits = model(**prompt).logits[:, -1]
        answer.append(pick(answer, logits))
        embeds = model.get_input_embeddings()(answer[-1][:, None])
        prompt["inputs_embeds"] = torch.cat([prompt["inputs_embeds"], embeds], dim=1)
        one = torch.ones_like(prompt["attention_mask"][:, :1])
        prompt["attention_mask"] = torch.cat([prompt["attention_mask"], one], dim=1)
        last = prompt["position_ids"][:, -1:] + 1
        prompt["position_ids"] = torch.cat([prompt["position_ids"], last], dim=1)
    return torch.stack(answer, dim=1)
