"""Tiny Qwen2-VL and Qwen3-VL models, prompts for them, and the pruned forward done by hand.

The towers have no windows. Qwen3-VL's makes DeepStack's planes, which the oracle indexes as it does
the features: it hands the language model everything by itself.
"""

from __future__ import annotations

import functools

import qwen_models
import torch
import transformers
from qwen_models import END, IMAGE, MERGE, PAD, PATCH, START, VIDEO, continue_by_hand, greedy

from hiprune import select_tokens

CLASSES = {"qwen2_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VLMoe"}
WIDTH = 32
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
    """A left-padded batch of prompts; a video's frames are apart in Qwen3-VL's."""
    apart = family != "qwen2_vl"
    return qwen_models.inputs(images_per_prompt, first, video_frames, GRIDS, apart)


def look(model, patches, grid) -> tuple[list[torch.Tensor], dict[int, torch.Tensor]]:
    """One image through the unpatched tower: features (N, C) and DeepStack's, block -> scores (N,).

    Tokens lie in raster order: there are no windows.
    """
    out, maps = qwen_models.look(model, patches, grid, (OBJECT_LAYER, BLOCKS))
    scores = {n: x.mean(dim=(0, 1)).view(-1, MERGE**2).mean(dim=1) for n, x in maps.items()}
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

    def beside(length: int) -> dict:
        if not planes or spoil == "planes":
            return {}
        visual = torch.isin(torch.arange(len(ids)), places)[keep]
        mask = torch.nn.functional.pad(visual, (0, length - len(visual)))  # the answer is text
        found = [plane[keep][visual] for plane in planes]
        return {"visual_pos_masks": mask[None], "deepstack_visual_embeds": found}

    # As it is without its decorator: a caller may want gradients.
    return continue_by_hand.__wrapped__(model, embeds, positions, after, steps, pick, beside)
