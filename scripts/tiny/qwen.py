"""The tiny Qwen2.5-VL."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from scripts.tiny.blocks import qwen_block, rms_norm
from scripts.tiny.tokens import qwen_prompts
from scripts.tiny.trainee import COLUMNS, WIDTH, Seen, Trainee, initialise


class QwenTrainee(Trainee):
    """Qwen2.5-VL: patches of 14 pixels, windows of 112, merged 2 x 2; M-RoPE positions."""

    family = "qwen2_5_vl"
    tower_width = 96

    def __init__(self, directory: Path) -> None:
        prompts = qwen_prompts()
        tokenizer = prompts.tokenizer
        names = {
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        }
        config = Qwen2_5_VLConfig(
            text_config={
                "vocab_size": -(-len(tokenizer) // 64) * 64,
                "hidden_size": WIDTH,
                "intermediate_size": 2 * WIDTH,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 4096,
                "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
                "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
                "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
                # A small base: with the usual one the frequencies that M-RoPE gives to columns
                # would turn by hundredths of a radian over the image, and left were as right.
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 50.0,
                    "mrope_section": [2, 7, 7],
                },
            },
            vision_config={
                "depth": 8,
                "hidden_size": self.tower_width,
                "num_heads": 3,
                "intermediate_size": 2 * self.tower_width,
                "out_hidden_size": WIDTH,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [3, 7],
            },
            **{key: tokenizer.convert_tokens_to_ids(name) for key, name in names.items()},
        )
        model = Qwen2_5_VLForConditionalGeneration._from_config(config)
        initialise(model)
        super().__init__(model, prompts, WIDTH, rows=False, whole=False)
        tower = model.model.visual
        pairs, window = COLUMNS, tower.window_size // 28
        order = torch.arange(pairs * pairs).view(pairs // window, window, pairs // window, window)
        order = order.transpose(1, 2).flatten()  # (N,) raster index of each token in window order
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        # Row and column of each patch in window order; the four of a token stand together.
        row, column = order // pairs, order % pairs
        inside = torch.arange(4)
        patches = [2 * row[:, None] + inside // 2, 2 * column[:, None] + inside % 2]
        at = torch.stack([part.flatten() for part in patches], dim=-1)  # (4 N, 2)
        cos, sin = tower.rotary_pos_emb(self.shift, at)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.windows = (pairs // window) ** 2

    def vision(self, images: Tensor, newlines: bool = True) -> Seen:
        tower, batch = self.model.model.visual, len(images)
        pixels = self.normalised(images)
        # (B, 3, row, pair, 14, column, pair, 14) -> tokens in window order, then the pair's patches
        pixels = pixels.reshape(batch, 3, COLUMNS, 2, 14, COLUMNS, 2, 14)
        pixels = pixels.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(1, 2).flatten(2)
        pixels = pixels[:, self.order].unflatten(2, (4, -1)).flatten(1, 2)  # (B, 4 N, 3 * 14 * 14)
        # The two frames of a still picture are the same: the sum of their kernels is one kernel.
        kernel = tower.patch_embed.proj.weight.sum(dim=2).flatten(1)
        states = pixels @ kernel.T
        for index, block in enumerate(tower.blocks):
            windows = 1 if index in tower.fullatt_block_indexes else self.windows
            states = qwen_block(block, states, self.cos, self.sin, windows)
        merger = tower.merger
        states = rms_norm(merger.ln_q, states).unflatten(1, (-1, 4)).flatten(2)
        embedded = merger.mlp(states)[:, self.back]
        return Seen(embedded, embedded, None)

    def angles(
        self, before: int, visual: int, after: int, questions: int, length: int
    ) -> tuple[Tensor, Tensor]:
        device = self.shift.device
        side = torch.arange(COLUMNS, device=device)
        image = torch.stack(
            [
                torch.zeros(COLUMNS**2, dtype=torch.long, device=device),
                side.repeat_interleave(COLUMNS),
                side.repeat(COLUMNS),
            ]
        )
        start = before + COLUMNS  # the image takes as many positions as its longer side has tokens
        text = torch.cat(
            [
                torch.arange(start, start + after, device=device),
                self.text_positions(start + after, questions, length, device),
            ]
        )
        positions = torch.cat(
            [
                torch.arange(before, device=device).expand(3, -1),
                before + image,
                text.expand(3, -1),
            ],
            dim=1,
        )
        cos, sin = self.language.rotary_emb(self.shift, positions[:, None])
        return cos[0], sin[0]
