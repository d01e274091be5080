"""Tiny Qwen2.5-VL models, prompts for them, and the pruned forward done by hand."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from hiprune import select_tokens

IMAGE, VIDEO, START, END, PAD = 501, 502, 503, 504, 0
PATCH, MERGE = 4, 2  # window_size 32 pixels: 8 x 8 patches, 4 x 4 tokens, as the real model's
BLOCKS, OBJECT_LAYER, ALPHA = 8, 4, 0.5  # full attention in blocks 4 and 8
# (height, width) in patches; neither is a multiple of the window
GRIDS = [(12, 20), (10, 10), (4, 18), (16, 12)]


@functools.cache
def load(attention: str = "eager") -> Qwen2_5_VLForConditionalGeneration:
    """One model a kernel, shared by the tests, which give it back unpatched."""
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
            "pad_token_id": PAD,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]
            },
        },
        vision_config={
            "depth": BLOCKS, "hidden_size": 48, "num_heads": 3, "intermediate_size": 64,
            "out_hidden_size": 64, "patch_size": PATCH, "spatial_merge_size": MERGE,
            "temporal_patch_size": 2, "window_size": 32, "fullatt_block_indexes": [3, 7],
        },
        image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    config._attn_implementation = attention
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=attention)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            # Attention with peaks, and images that matter to the answer.
            gain = 2.5 if "qkv" in name or "q_proj" in name or "k_proj" in name else 1.0
            torch.nn.init.normal_(parameter, std=gain * parameter[0].numel() ** -0.5)
    model.generation_config.eos_token_id = None  # random weights go on to the full length
    model.generation_config.pad_token_id = PAD
    return model.eval()


def pixels(grid: tuple[int, int], index: int, frames: int = 1) -> torch.Tensor:
    """(patches, pixels of a patch): smooth blobs that differ with the index."""
    noise = torch.Generator().manual_seed(1000 + index)
    patches = frames * grid[0] * grid[1]
    coarse = torch.randn(patches // 4, 1, 3 * 2 * PATCH**2, generator=noise)
    fine = torch.randn(patches // 4, 4, 3 * 2 * PATCH**2, generator=noise)
    return (coarse + 0.5 * fine).flatten(0, 1)


def inputs(
    images_per_prompt: list[int],
    first: int = 0,
    video_frames: int = 0,
    grids: Sequence[tuple[int, int]] = GRIDS,
    frames_apart: bool = False,
) -> dict:
    """A left-padded batch of prompts with so many images each, text before, between and after.

    Args:
        first: number of the first image.
        video_frames: a video of so many frames at the end of every prompt.
        grids: (height, width) of the images in patches, in turn; of the videos as well.
        frames_apart: are a video's frames runs of placeholders of their own, text before each?
    """
    rows, images, sizes, videos, video_sizes = [], [], [], [], []

    def visual(token: int, grid: tuple[int, int], frames: int = 1) -> list[int]:
        tokens = frames * grid[0] * grid[1] // MERGE**2
        return [START, *[token] * tokens, END]

    for prompt, count in enumerate(images_per_prompt):
        words = torch.Generator().manual_seed(zlib.crc32(b"%d" % (prompt + first)))

        def text(count, words=words):
            return torch.randint(3, 500, (count,), generator=words).tolist()

        row = [1]
        for _ in range(count):
            index = len(images) + first
            grid = grids[index % len(grids)]
            row += text(3) + visual(IMAGE, grid)
            images.append(pixels(grid, index))
            sizes.append((1, *grid))
        if video_frames:
            grid = grids[prompt % len(grids)]
            if frames_apart:
                for _ in range(video_frames):
                    row += text(2) + visual(VIDEO, grid)
            else:
                row += visual(VIDEO, grid, video_frames)
            videos.append(pixels(grid, 50 + prompt, video_frames))
            video_sizes.append((video_frames, *grid))
        rows.append(row + text(4 + prompt))
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    arguments = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
        "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int(),
    }
    if images:
        arguments |= {"pixel_values": torch.cat(images), "image_grid_thw": torch.tensor(sizes)}
    if videos:
        arguments["pixel_values_videos"] = torch.cat(videos)
        arguments["video_grid_thw"] = torch.tensor(video_sizes)
    return arguments


def attention_maps(model, pixel_values, grid) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """One image through the unpatched tower: merged tokens (N, C), block -> (H, 4 N, 4 N) map."""
    out, maps = look(model, pixel_values, grid, (OBJECT_LAYER, BLOCKS))
    return out.pooler_output, maps


def look(model, pixel_values, grid, blocks: Sequence[int]) -> tuple[Any, dict[int, torch.Tensor]]:
    """One image through the unpatched tower of a Qwen: its output, block -> (H, 4 N, 4 N) map.

    The maps are made of what the blocks' qkv layers give, with the windows as their mask.
    """
    visual, pieces = model.model.visual, {}
    hooks = []
    for number in blocks:
        attention = visual.blocks[number - 1].attn
        hooks.append(
            attention.register_forward_hook(
                lambda module, args, kwargs, out, n=number: pieces.update({n: (args, kwargs)}),
                with_kwargs=True,
            )
        )
    out = visual(pixel_values, torch.tensor([grid]))
    for hook in hooks:
        hook.remove()
    maps = {}
    for number, (args, kwargs) in pieces.items():
        attention = visual.blocks[number - 1].attn
        hidden = args[0] if args else kwargs["hidden_states"]
        query, key, _ = (
            attention.qkv(hidden).double().unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
        )
        cos, sin = (x.double().unsqueeze(1) for x in kwargs["position_embeddings"])

        def rotate(x, cos=cos, sin=sin):
            half = x.shape[-1] // 2
            return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin

        logits = torch.einsum("nhd,mhd->hnm", rotate(query), rotate(key)) * attention.scaling
        segment = torch.searchsorted(kwargs["cu_seqlens"], torch.arange(len(hidden)), right=True)
        logits = logits.masked_fill(segment[:, None] != segment[None, :], -torch.inf)
        maps[number] = logits.softmax(dim=-1)
    return out, maps


def window_order(grid: tuple[int, int]) -> list[int]:
    """Raster index of the merged tokens, window by window: 4 x 4 tokens, cut at the borders."""
    rows, columns = grid[0] // MERGE, grid[1] // MERGE
    return [
        y * columns + x
        for top in range(0, rows, 4)
        for left in range(0, columns, 4)
        for y in range(top, min(top + 4, rows))
        for x in range(left, min(left + 4, columns))
    ]


def scores_by_hand(received: torch.Tensor, grid) -> torch.Tensor:
    """(H, 4 N, 4 N) map of one image -> (1, N) received by its tokens, in raster order."""
    received = received.mean(dim=(0, 1)).view(-1, MERGE**2).mean(dim=1)
    raster = torch.empty_like(received)
    raster[torch.tensor(window_order(grid[1:]))] = received
    return raster[None]


def select_by_hand(model, pixel_values, grid, budget) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, C) and kept indices (N',) of one image, from the whole maps."""
    features, maps = attention_maps(model, pixel_values, grid)
    scores = [scores_by_hand(maps[number], grid) for number in (OBJECT_LAYER, BLOCKS)]
    selection = select_tokens(*scores, columns=grid[2] // MERGE, budget=budget, alpha=ALPHA)
    return features, selection.indices[0]


@torch.no_grad()
def pruned_rows_by_hand(
    model, arguments: dict, budget
) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """Of each prompt: embeddings (1, T', C) and positions (3, 1, T') without the dropped tokens.

    And the position that follows the unpruned prompt.
    """
    images = []
    start = 0
    for grid in arguments.get("image_grid_thw", torch.empty(0, 3, dtype=torch.long)).tolist():
        patches = grid[1] * grid[2]
        part = arguments["pixel_values"][start : start + patches]
        images.append((part, grid, budget(patches // MERGE**2)))
        start += patches
    images = iter(images)
    rows = []
    for ids, mask in zip(arguments["input_ids"], arguments["attention_mask"], strict=True):
        ids = ids[mask.bool()]
        embeds, keep, grids = model.get_input_embeddings()(ids), torch.ones_like(ids).bool(), []
        places = (ids == IMAGE).nonzero().flatten().tolist()
        while places:
            pixel_values, grid, n_kept = next(images)
            features, kept = select_by_hand(model, pixel_values, grid, n_kept)
            here, places = torch.tensor(places[: len(features)]), places[len(features) :]
            embeds[here] = features
            keep[here] = False
            keep[here[kept]] = True
            grids.append(grid)
        positions, _ = model.model.get_rope_index(
            ids[None],
            mm_token_type_ids=(ids[None] == IMAGE).int(),
            image_grid_thw=torch.tensor(grids) if grids else None,
        )
        after = int(positions.max()) + 1
        rows.append((embeds[keep][None], positions[:, :, keep], after))
    return rows


def greedy(answer: list[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


@torch.no_grad()
def continue_by_hand(
    model, embeds, positions, after: int, steps: int, pick=greedy, beside=lambda length: {}
) -> tuple[torch.Tensor, list[int]]:
    """Logits of the prompt (T', V) and the ids that decoding adds, without any cache.

    Args:
        after: the first position of the answer.
        pick: (answer so far, (1, V) logits) -> (1,) id; the likeliest unless given.
        beside: positions so far -> what else the language model gets.
    """
    logits, answer = None, []
    for _ in range(steps):
        hidden = model.model.language_model(
            inputs_embeds=embeds, position_ids=positions, attention_mask=None, use_cache=False,
            **beside(embeds.shape[1]),
        ).last_hidden_state  # fmt: skip
        step = model.lm_head(hidden)[0]
        logits = step if logits is None else logits
        answer.append(pick(answer, step[-1:]))
        embeds = torch.cat([embeds, model.get_input_embeddings()(answer[-1][None])], 1)
        positions = torch.cat([positions, torch.full((3, 1, 1), after)], dim=-1)
        after += 1
    return logits, [int(token) for token in answer]
