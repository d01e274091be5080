"""The tiny models: transformers' own classes, and how training runs them."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import NamedTuple

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
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from tiny_train.batches import PRESENT, Batch
from tiny_train.blocks import (
    clip_layer,
    decoder_layer,
    grid_positions,
    qwen_block,
    rms_norm,
)
from tiny_train.scenes import COLOURS, SHAPES, SIZES
from tiny_train.tokens import Prompts, llava_prompts, qwen_prompts

COLUMNS = 12  # tokens in a row: 144 an image
WIDTH = 128
FAMILIES = ("llava", "llava_next", "qwen2_5_vl")
# The last matrix of what a layer adds to its input.
ADDED = ("o_proj", "out_proj", "attn.proj", "fc2", "down_proj")


class Seen(NamedTuple):
    """What a tower makes of B images.

    Attributes:
        features: (B, N, C) for the dense heads, grid after grid, each in raster order.
        embedded: (B, M, D) for the language model.
        whole: (B, C) of the image as a whole, where the tower has a class token.
    """

    features: Tensor
    embedded: Tensor
    whole: Tensor | None


class Trainee(nn.Module):
    """A model, its dense heads (dropped after training), and its forward pass for training.

    Attributes:
        model: the transformers model; what is saved.
        heads: linear classifiers of the tower's tokens, and of the whole image.
        prompts: its tokenizer and prompts.
        family: one of FAMILIES.
        side: pixels of an image's side.
        grids: columns of the grids of tokens that an image has.
        sizes: diameter of the things in its scenes.
    """

    family: str
    side: int
    grids: tuple[int, ...] = (COLUMNS,)
    sizes: tuple[float, float] = SIZES

    def __init__(
        self, model: nn.Module, prompts: Prompts, dense_width: int, rows: bool, whole: bool
    ) -> None:
        super().__init__()
        self.model, self.prompts = model, prompts
        classes = {"shape": 1 + len(SHAPES), "colour": 1 + len(COLOURS), "centre": 2}
        if rows:
            classes |= {"row": COLUMNS, "column": COLUMNS}
        if whole:
            classes |= {"present": PRESENT}
        self.norm = nn.LayerNorm(dense_width)
        self.heads = nn.ModuleDict({k: nn.Linear(dense_width, n) for k, n in classes.items()})
        mean, std = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)

    @property
    def language(self) -> nn.Module:
        return self.model.model.language_model

    def vision(self, images: Tensor, newlines: bool = True) -> Seen:
        """(B, S, S, 3) uint8 -> what the tower makes of it; LLaVA-NeXT's rows end in newlines."""
        raise NotImplementedError

    def normalised(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, 3, S, S), as the image processors do."""
        return torch.addcmul(self.shift, images, self.scale).permute(0, 3, 1, 2)

    def angles(
        self, before: int, visual: int, after: int, questions: int, length: int
    ) -> tuple[Tensor, Tensor]:
        """(P + Q * T, D) x 2: cosines and sines of the language model's positions."""
        raise NotImplementedError

    def dense(self, seen: Seen) -> dict[str, Tensor]:
        """(B, N, classes) of each head; (B, classes) of the one for the whole image."""
        features = self.norm(seen.features)
        return {
            name: head(seen.whole if name == "present" else features)
            for name, head in self.heads.items()
        }

    def answer(self, embedded: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, M, D) -> (B, Q, V) x 2: logits where the answer is due, and where the end is."""
        language = self.language
        batch_size, count, length = batch.questions.shape
        before, after = (
            language.embed_tokens(ids).expand(batch_size, -1, -1)
            for ids in (batch.before, batch.after)
        )
        questions = language.embed_tokens(batch.questions.flatten(1))
        states = torch.cat([before, embedded.to(before.dtype), after, questions], dim=1)
        visual = embedded.shape[1]
        cos, sin = self.angles(len(batch.before), visual, len(batch.after), count, length)
        prefix = states.shape[1] - count * length
        for layer in language.layers:
            states = decoder_layer(layer, states, cos, sin, prefix, length)
        states = states[:, prefix:].unflatten(1, (count, length))
        at = batch.answer_at[..., None, None] + torch.tensor([-1, 0], device=states.device)[:, None]
        states = states.gather(2, at.expand(-1, -1, -1, states.shape[-1]))  # (B, Q, 2, D)
        logits = self.model.lm_head(rms_norm(language.norm, states)).float()
        return logits[:, :, 0], logits[:, :, 1]

    def text_positions(self, start: int, questions: int, length: int, device) -> Tensor:
        """(Q * T,) positions of the questions, each of which goes on at ``start``."""
        return torch.arange(start, start + length, device=device).repeat(questions)


class LlavaTrainee(Trainee):
    """LLaVA-1.5: CLIP, of which the language model sees the last layer but one, and Llama."""

    family = "llava"
    side = 14 * COLUMNS
    rows = True  # whether the heads also tell row and column

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
    side = 2 * 14 * COLUMNS
    grids = (COLUMNS, 2 * COLUMNS)
    sizes = (0.09, 0.16)
    rows = False

    def make_model(self, **settings) -> nn.Module:
        view = 14 * COLUMNS
        config = LlavaNextConfig(
            **settings,
            image_grid_pinpoints=[
                [rows * view, columns * view]
                for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
            ],
        )
        model = LlavaNextForConditionalGeneration._from_config(config)
        nn.init.normal_(model.model.image_newline, std=0.5)
        return model

    def vision(self, images: Tensor, newlines: bool = True) -> Seen:
        view, batch = self.side // 2, len(images)
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


class QwenTrainee(Trainee):
    """Qwen2.5-VL: patches of 14 pixels, windows of 112, merged 2 x 2; M-RoPE positions."""

    family = "qwen2_5_vl"
    side = 28 * COLUMNS
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


def initialise(model: nn.Module) -> None:
    """Normal weights of 1 / sqrt(inputs); what a layer adds to its input begins small."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            inputs = prod(module.weight.shape[1:])
            gain = 0.3 if name.endswith(ADDED) else 1.0
            nn.init.normal_(module.weight, std=gain * inputs**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)


def make_trainee(family: str, directory: Path) -> Trainee:
    """A model with fresh weights; its tokenizer's file is written to ``directory``."""
    makers = {maker.family: maker for maker in (LlavaTrainee, LlavaNextTrainee, QwenTrainee)}
    if family not in makers:
        raise SystemExit(f"family={family!r}: accepted is one of {', '.join(FAMILIES)}")
    return makers[family](directory)
