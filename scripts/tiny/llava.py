"""The tiny LLaVA-1.5 and LLaVA-NeXT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from scripts.convert.to_hf import pinpoints
from scripts.tiny.blocks import clip_layer, grid_positions
from scripts.tiny.tokens import llava_prompts
from scripts.tiny.trainee import COLUMNS, WIDTH, Seen, Trainee, initialise


class LlavaTrainee(Trainee):
    """LLaVA-1.5: CLIP, of which the language model sees the last layer but one, and Llama."""

    family = "llava"
    rows = True  # whether the heads also tell row and column
    settings: dict[str, Any] = {"image_aspect_ratio": "pad"}  # noqa: RUF012 (as the package's)

    def __init__(self, directory: Path) -> None:
        prompts = llava_prompts(directory)
        model = self.make_model(
            text_config=LlamaConfig(
                vocab_size=-(-len(prompts.tokenizer) // 64) * 64,
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                num_hidden_layers=4,
                num_attention_heads=4,
                max_position_embeddings=4096,
                pad_token_id=prompts.tokenizer.pad_token_id,
            ),
            vision_config=CLIPVisionConfig(
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=8,
                num_attention_heads=4,
                image_size=14 * COLUMNS,
                patch_size=14,
                projection_dim=WIDTH,
            ),
            image_token_index=prompts.tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
        initialise(model)
        embeddings = model.model.vision_tower.embeddings
        embeddings.position_embedding.weight.data[1:] = grid_positions(COLUMNS, WIDTH)
        super().__init__(model, prompts, WIDTH, self.rows, whole=True)

    def make_model(self, **settings) -> nn.Module:
        """The transformers model with random weights."""
        config = LlavaConfig(**settings, image_seq_length=COLUMNS**2)
        return LlavaForConditionalGeneration._from_config(config)

    def tower(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(V, 3, S, S) -> (V, N, C) of the output layer, (V, C) of the class token at the end."""
        tower = self.model.model.vision_tower
        states = tower.pre_layrnorm(tower.embeddings(pixels))
        for layer in tower.encoder.layers[:-1]:
            states = clip_layer(layer, states)
        features = states[:, 1:]
        whole = clip_layer(tower.encoder.layers[-1], states)[:, 0]
        return features, tower.post_layernorm(whole)

    def vision(self, images: Tensor, newlines: bool = True) -> Seen:
        features, whole = self.tower(self.normalised(images))
        return Seen(features, self.model.model.multi_modal_projector(features), whole)

    def angles(
        self, before: int, visual: int, after: int, questions: int, length: int
    ) -> tuple[Tensor, Tensor]:
        prefix, device = before + visual + after, self.shift.device
        positions = torch.cat(
            [
                torch.arange(prefix, device=device),
                self.text_positions(prefix, questions, length, device),
            ]
        )
        cos, sin = self.language.rotary_emb(self.shift, positions[None])
        return cos[0], sin[0]


class LlavaNextTrainee(LlavaTrainee):
    """LLaVA-NeXT: the image once as a whole and once in 2 x 2 tiles, for smaller things.

    The tower's weights are LLaVA-1.5's to begin with (see ``start``), so nothing has to tell it
    rows and columns again.
    """

    family = "llava_next"
    grids = (COLUMNS, 2 * COLUMNS)
    rows = False
    settings = {  # noqa: RUF012
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": [
            [14 * COLUMNS * columns, 14 * COLUMNS * rows]
            for columns, rows in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
        ],
    }

    def make_model(self, **settings) -> nn.Module:
        config = LlavaNextConfig(**settings, image_grid_pinpoints=pinpoints(self.settings))
        model = LlavaNextForConditionalGeneration._from_config(config)
        nn.init.normal_(model.model.image_newline, std=0.5)
        return model

    def vision(self, images: Tensor, newlines: bool = True) -> Seen:
        view, batch = self.drawing.side // 2, len(images)
        small = F.interpolate(
            images.permute(0, 3, 1, 2).float(), (view, view), mode="bicubic", antialias=True
        )
        small = small.round().clamp(0, 255).permute(0, 2, 3, 1)  # as the image processor does
        tiles = images.unflatten(2, (2, view)).unflatten(1, (2, view)).transpose(2, 3)
        views = torch.cat([small, tiles.flatten(0, 2).float()])  # (B + 4 B, S / 2, S / 2, 3)
        features, whole = self.tower(self.normalised(views))
        embedded = self.model.model.multi_modal_projector(features)
        base, grid = self._merge(embedded, batch)
        if newlines:
            lines = grid.unflatten(1, (2 * COLUMNS, -1))  # (B, rows, columns, D)
            ends = self.model.model.image_newline.to(lines.dtype).expand(
                batch, len(lines[0]), 1, -1
            )
            grid = torch.cat([lines, ends], dim=2).flatten(1, 2)
        features = torch.cat(self._merge(features, batch), dim=1)
        return Seen(features, torch.cat([base, grid], dim=1), whole[:batch])

    def _merge(self, views: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """(B + 4 B, N, C) -> (B, N, C) of the whole, (B, 4 N, C) of the tiles in raster order."""
        base, tiles = views.split([batch, 4 * batch])
        tiles = tiles.reshape(batch, 2, 2, COLUMNS, COLUMNS, -1).transpose(2, 3)
        return base, tiles.flatten(1, 4)
