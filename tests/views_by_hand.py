"""InternVL, LLaVA-OneVision and Video-LLaVA pruned by hand: from whole maps, token by token."""

from __future__ import annotations

from itertools import groupby

import torch
from views_models import IMAGE, LAYERS, SIDE, TOKENS, VIDEO, grids_of, images_of

from hiprune import select_tokens

OBJECT_LAYER, ALPHA = 2, 0.5


def features_by_hand(family: str, model, arguments: dict, retention) -> dict[int, list]:
    """Placeholder -> of each image, or video, the features that HiPrune keeps, from whole maps.

    ``model``: one whose towers attend eagerly.
    """
    grids = grids_of(arguments) if "image_sizes" in arguments else None
    found = {IMAGE: [], VIDEO: []}
    for number, views in enumerate(images_of(family, arguments)):
        grid = None if grids is None else grids[number]
        found[IMAGE].append(_image(family, model.model, views, grid, retention))
    for frames in arguments.get("pixel_values_videos", ()):
        found[VIDEO].append(_video(family, model.model, frames, retention))
    return found


def _budget(retention, tokens: int) -> int:
    if isinstance(retention, int):
        return min(retention, tokens)
    return max(1, round(retention * tokens))


def _look(tower, pixels, output_layer: int, extra: int):
    """(V, E + patches, C_v) states of the output layer, and (V, patches) scores of both layers."""
    out = tower(pixels, output_attentions=True, output_hidden_states=True)
    received = [
        out.attentions[layer - 1].mean(dim=(1, 2))[:, extra:]
        for layer in (OBJECT_LAYER, output_layer)
    ]
    return out, out.hidden_states[output_layer], received


def _image(family, inner, views, grid, retention) -> torch.Tensor:
    budget = _budget(retention, TOKENS[family] * min(10, len(views))) // len(views)
    if family == "internvl":
        out, _, received = _look(inner.vision_tower, views, LAYERS, 1)
        states, side, groups = out.last_hidden_state[:, 1:], SIDE[family], []
        for y in range(0, side, 2):
            for x in range(0, side, 2):
                at = y * side + x  # the upper left patch of four
                groups.append([at, at + 1, at + side, at + side + 1])
        scores = [torch.stack([s[:, g].mean(dim=1) for g in groups], dim=1) for s in received]
        chosen = select_tokens(*scores, columns=3, budget=budget, alpha=ALPHA)
        picked = [
            torch.cat([states[tile, patch] for patch in groups[token]])
            for tile, tokens in enumerate(chosen.indices.tolist())
            for token in tokens
        ]
        return inner.multi_modal_projector(torch.stack(picked))
    extra, layer = (0, LAYERS) if family == "llava_onevision" else (1, LAYERS - 1)
    tower = inner.vision_tower if extra == 0 else inner.image_tower
    _, states, scores = _look(tower, views, layer, extra)
    chosen = select_tokens(*scores, columns=5, budget=budget, alpha=ALPHA)
    features = inner.multi_modal_projector(states[:, extra:])
    picked = [features[0, token] for token in chosen.indices[0]]
    if grid is not None:
        for y in range(grid[0] * 5):  # the merged picture, row by row
            for x in range(grid[1] * 5):
                view, token = 1 + y // 5 * grid[1] + x // 5, y % 5 * 5 + x % 5
                if chosen.keep[view, token]:
                    picked.append(features[view, token])
    return torch.stack(picked)


def _video(family, inner, frames, retention) -> torch.Tensor:
    if family == "video_llava":
        _, states, scores = _look(inner.video_tower, frames, LAYERS - 1, 1)
        chosen = select_tokens(*scores, columns=5, budget=_budget(retention, 25), alpha=ALPHA)
        features = inner.multi_modal_projector(states)
        picked = [
            features[frame, place]
            for frame, tokens in enumerate(chosen.indices.tolist())
            for place in (0, *(1 + token for token in tokens))
        ]
        return torch.stack(picked)
    _, states, scores = _look(inner.vision_tower, frames, LAYERS, 0)
    scores = [inner.apply_pooling(each.unsqueeze(2)).squeeze(2) for each in scores]
    chosen = select_tokens(*scores, columns=3, budget=_budget(retention, 9), alpha=ALPHA)
    features = inner.apply_pooling(inner.multi_modal_projector(states))  # (frames, 9, C)
    picked = [features[frame, kept] for frame, kept in enumerate(chosen.indices)]
    return torch.cat([*picked, inner.image_newline[None]])


def prompt_by_hand(model, arguments: dict, features: dict[int, list]) -> dict:
    """Left-padded embeddings, mask and positions of the pruned prompts."""
    embed, rows = model.get_input_embeddings(), []
    features = {token: iter(found) for token, found in features.items()}
    for ids, mask in zip(arguments["input_ids"], arguments["attention_mask"], strict=True):
        row = []
        for token, run in groupby(ids[mask.bool()].tolist()):
            row.append(
                next(features[token]) if token in features else embed(torch.tensor(list(run)))
            )
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
    """The towers' maps can then be looked at."""
    model.set_attn_implementation({"vision_config": "eager"})
    return model
