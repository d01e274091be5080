"""Tiny Qwen2-VL and Qwen3-VL models, prompts for them, and the pruned forward done by hand.

The towers have no windows. Qwen3-VL's makes DeepStack's planes, which the oracle indexes as it does
the features: it hands the language model everything by itself.
"""

from __future__ import annotations

import functools
import zlib

import torch
import transformers
from qwen_models import END, IMAGE, PAD, START, VIDEO, greedy, pixels

from hiprune import select_tokens

CLASSES = {"qwen2_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VLMoe"}
PATCH, MERGE, WIDTH = 4, 2, 32
BLOCKS, OBJECT_LAYER, ALPHA = 4, 2, 0.5
GRIDS = [(8, 12), (10, 6), (4, 14), (6, 8)]  # (height, width) in patches
DEEPSTACK = {"qwen3_vl": [0, 1, 2], "qwen3_vl_moe": [0, 2, 3]}  # the last block's may be cut short


@functools.cache
def load(family: str, attention: str = "sdpa"):
    """A model with random weights, the same for every kernel."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 512, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3],
        },
    }  # fmt: skip
    vision = {
        "depth": BLOCKS, "hidden_size": WIDTH, "num_heads": 2, "patch_size": PATCH,
        "spatial_merge_size": MERGE, "temporal_patch_size": 2,
    }  # fmt: skip
    if family == "qwen2_vl":
        text["rope_parameters"]["mrope_section"] = [1, 1, 2]
        del text["head_dim"]
        vision |= {"embed_dim": WIDTH, "mlp_ratio": 2}
    else:
        text["rope_parameters"]["mrope_interleaved"] = True
        vision |= {
            "intermediate_size": 48, "out_hidden_size": WIDTH, "num_position_embeddings": 16,
            "deepstack_visual_indexes": DEEPSTACK[family],
        }  # fmt: skip
    if family == "qwen3_vl_moe":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    model_class = getattr(transformers, f"{CLASSES[family]}ForConditionalGeneration")
    config = model_class.config_class(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    model = model_class._from_config(config, attn_implementation=attention)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            # Attention with peaks, and images that matter to the answer.
            gain = 2.5 if "qkv" in name or "q_proj" in name or "k_proj" in name else 1.0
            torch.nn.init.normal_(parameter, std=gain * parameter.shape[-1] ** -0.5)
    model.generation_config.eos_token_id = None  # random weights go on to the full length
    model.generation_config.pad_token_id = PAD
    return model.eval()


def inputs(family: str, images_per_prompt: list[int], first: int = 0, video_frames: int = 0):
    """A left-padded batch of prompts with so many images each, text before, between and after.

    ``video_frames``: a video of so many frames at the end of every prompt; of Qwen3-VL each frame
    with its time before it.
    """
    rows, images, grids, videos, video_grids = [], [], [], [], []

    def visual(token: int, grid: tuple[int, int], frames: int = 1) -> list[int]:
        return [START, *[token] * (frames * grid[0] * grid[1] // MERGE**2), END]

    for prompt, count in enumerate(images_per_prompt):
        words = torch.Generator().manual_seed(zlib.crc32(b"%d" % (prompt + first)))

        def text(count, words=words):
            return torch.randint(3, 500, (count,), generator=words).tolist()

        row = [1]
        for _ in range(count):
            grid = GRIDS[(len(images) + first) % len(GRIDS)]
            row += text(3) + visual(IMAGE, grid)
            images.append(pixels(grid, len(images) + first))
            grids.append((1, *grid))
        if video_frames:
            grid = GRIDS[(prompt + 2) % len(GRIDS)]
            if family == "qwen2_vl":
                row += visual(VIDEO, grid, video_frames)
            else:
                for _ in range(video_frames):
                    row += text(2) + visual(VIDEO, grid)
            videos.append(pixels(grid, 50 + prompt, video_frames))
            video_grids.append((video_frames, *grid))
        rows.append(row + text(4 + prompt))
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    arguments = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
        "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int(),
    }
    if images:
        arguments |= {"pixel_values": torch.cat(images), "image_grid_thw": torch.tensor(grids)}
    if videos:
        arguments["pixel_values_videos"] = torch.cat(videos)
        arguments["video_grid_thw"] = torch.tensor(video_grids)
    return arguments


def look(model, patches, grid) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
    """One image through the unpatched tower: features (N, C) and DeepStack's, block -> scores (N,).

    The scores are made of whole maps, of what the blocks' qkv layers give.
    """
    visual, seen = model.model.visual, {}

    def keep(number):
        def hook(module, args, kwargs, out):
            seen[number] = (args[0] if args else kwargs["hidden_states"], kwargs)

        return visual.blocks[number - 1].attn.register_forward_hook(hook, with_kwargs=True)

    hooks = [keep(number) for number in (OBJECT_LAYER, BLOCKS)]
    out = visual(patches, torch.tensor([grid]))
    for hook in hooks:
        hook.remove()
    scores = {}
    for number, (hidden, kwargs) in seen.items():
        attention = visual.blocks[number - 1].attn
        qkv = attention.qkv(hidden).double().unflatten(-1, (3, attention.num_heads, -1))
        cos, sin = (x.double().unsqueeze(1) for x in kwargs["position_embeddings"])

        def rotate(x, cos=cos, sin=sin):
            half = x.shape[-1] // 2
            return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin

        query, key = rotate(qkv[:, 0]), rotate(qkv[:, 1])
        whole = torch.einsum("nhd,mhd->hnm", query, key) * attention.scaling  # (H, 4 N, 4 N)
        received = whole.softmax(dim=-1).mean(dim=(0, 1))
        scores[number] = received.view(-1, MERGE**2).mean(dim=1)  # raster order: no windows
    return [out.pooler_output, *getattr(out, "deepstack_features", [])], scores


def choose(model, patches, grid, budget) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Of one image: features (N, C) and DeepStack's, and kept indices (N',)."""
    features, scores = look(model, patches, grid)
    found = select_tokens(
        scores[OBJECT_LAYER][None], scores[BLOCKS][None],
        columns=grid[2] // MERGE, budget=budget, alpha=ALPHA,
    )  # fmt: skip
    return features, found.indices[0]


@torch.no_grad()
def by_hand(model, arguments, budget, steps, pick=greedy, spoil=None):
    """One prompt without padding: logits (T', V) and the ids that decoding adds, without a cache.

    Args:
        budget: tokens of an image or frame -> how many are kept.
        spoil: "planes" leaves DeepStack out; "positions" counts what is left anew.
    """
    frames = []  # (patches, grid) of every image and frame, in the order of the prompt's runs
    for pixel_values, sizes in (
        ("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")
    ):  # fmt: skip
        grids = arguments.get(sizes, torch.empty(0, 3, dtype=torch.long)).tolist()
        parts = arguments[pixel_values].split([t * h * w for t, h, w in grids]) if grids else ()
        for part, (count, height, width) in zip(parts, grids, strict=True):
            frames += [(patches, (1, height, width)) for patches in part.chunk(count)]
    (ids,) = arguments["input_ids"]
    embeds, keep = model.get_input_embeddings()(ids), torch.ones_like(ids).bool()
    places = ((ids == IMAGE) | (ids == VIDEO)).nonzero().flatten()  # images come before the video
    planes = [
        torch.zeros_like(embeds) for _ in getattr(model.model.visual, "deepstack_merger_list", ())
    ]
    start = 0
    for patches, grid in frames:
        tokens = grid[1] * grid[2] // MERGE**2
        (features, *deep), kept = choose(model, patches, grid, budget(tokens))
        here, start = places[start : start + tokens], start + tokens
        embeds[here] = features
        for plane, found in zip(planes, deep, strict=True):
            plane[here] = found
        keep[here] = False
        keep[here[kept]] = True
    positions, _ = model.model.get_rope_index(
        ids[None],
        mm_token_type_ids=((ids == IMAGE).int() + 2 * (ids == VIDEO).int())[None],
        image_grid_thw=arguments.get("image_grid_thw"),
        video_grid_thw=arguments.get("video_grid_thw"),
    )
    after = int(positions.max()) + 1
    embeds, positions = embeds[keep][None], positions[:, :, keep]
    if spoil == "positions":
        positions = torch.arange(int(keep.sum())).expand(3, 1, -1)
        after = int(keep.sum())
    beside = {}
    if planes and spoil != "planes":
        visual = torch.isin(torch.arange(len(ids)), places)[keep]
        beside["deepstack_visual_embeds"] = [plane[keep][visual] for plane in planes]
    logits, answer = None, []
    for _ in range(steps):
        if beside:  # the answer's ids are text
            beside["visual_pos_masks"] = torch.nn.functional.pad(
                visual[None], (0, embeds.shape[1] - len(visual))
            )
        hidden = model.model.language_model(
            inputs_embeds=embeds, position_ids=positions, use_cache=False, **beside
        ).last_hidden_state
        step = model.lm_head(hidden)[0]
        logits = step if logits is None else logits
        answer.append(pick(answer, step[-1:]))
        embeds = torch.cat([embeds, model.get_input_embeddings()(answer[-1][None])], 1)
        positions = torch.cat([positions, torch.full((3, 1, 1), after)], dim=-1)
        after += 1
    return logits, [int(token) for token in answer]
