"""What flops.py counts as executed is what whole models multiply: small ones, counted by torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="needs the environment .venv-qwen")

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hiprune import HiPruneConfig, prune
from scripts.efficiency.architectures import Architecture, Text, Vision
from scripts.efficiency.flops.cli import Subject
from scripts.efficiency.flops.conventions import figures
from scripts.efficiency.flops.count import Picture
from scripts.efficiency.flops.models import IMAGE_SIZE, counts_of, picture_of

SMALL_LLAVA = Architecture(
    "small", "llava", "-", Vision(24, 64, 4, 128, 14, 84), Text(2, 128, 4, 4, 256, 320), (9,), 36
)
_TEXT = Text(2, 256, 2, 1, 512, 512)  # heads of 128, as M-RoPE's sections want them
SMALL = {
    "qwen2_vl": Architecture(
        "small", "qwen2_vl", "-", Vision(4, 64, 4, 256, 14), replace(_TEXT, tied=True), (0.5,)
    ),
    "qwen2_5_vl": Architecture(
        "small",
        "qwen2_5_vl",
        "-",
        Vision(32, 64, 4, 128, 14, full_attention=(7, 15, 23, 31)),
        _TEXT,
        (0.5,),
    ),
    "qwen3_vl": Architecture(
        "small",
        "qwen3_vl",
        "-",
        Vision(4, 64, 4, 128, 16, deepstack=(0, 2)),
        replace(_TEXT, width=192, head=128),
        (0.5,),
    ),
    "internvl": Architecture(
        "small", "internvl", "-", Vision(4, 64, 4, 128, 14, 84), _TEXT, (13,), 3 * 9
    ),
    "llava_onevision": Architecture(
        "small", "llava_onevision", "-", Vision(4, 64, 4, 128, 14, 84), _TEXT, (0.3,), 5 * 36
    ),
}


@pytest.mark.parametrize("pruned", [False, True], ids=["unpruned", "pruned"])
@pytest.mark.parametrize("family", ["llava", *SMALL])
def test_executed_is_what_the_whole_model_multiplies(family, pruned):
    make = {"llava": small_llava, "internvl": small_views, "llava_onevision": small_views}
    model, inputs, architecture, picture, text_tokens = make.get(family, small_qwen)(family)
    retention = architecture.retentions[0]
    kept = Subject(architecture, picture, ()).kept(retention) if pruned else None
    if family == "llava_onevision" and not pruned:
        text_tokens += 2 * 6  # a newline for each row of its 2 x 2 views
    counts = counts_of(architecture, picture)
    expected = figures(counts, "executed", picture.tokens, kept, text_tokens, passes=1)  # a CPU
    if pruned:
        with prune(model, HiPruneConfig(retention=retention)):
            found = multiplied(model, inputs)
    else:
        found = multiplied(model, inputs)
    assert found == expected.total


def small_llava(family):
    from transformers import LlavaForConditionalGeneration

    from scripts.efficiency.configs import llava_hf_config

    model = LlavaForConditionalGeneration._from_config(
        llava_hf_config(SMALL_LLAVA), attn_implementation="eager"
    )
    # transformers' checkpoints have 64 rows more for placeholder and padding.
    text = replace(SMALL_LLAVA.text, vocabulary=SMALL_LLAVA.text.vocabulary + 64)
    ids = torch.tensor([[1] * 5 + [model.config.image_token_id] * 36 + [2] * 5])
    inputs = {"input_ids": ids, "pixel_values": torch.rand(1, 3, 84, 84)}
    return model, inputs, replace(SMALL_LLAVA, text=text), Picture(1, 6, 6), 10


def small_qwen(family):
    from scripts.efficiency.configs import qwen_config

    architecture = SMALL[family]
    config = qwen_config(architecture)
    config.image_token_id, config.vision_start_token_id, config.video_token_id = 500, 501, 502
    picture, patch = Picture(1, 10, 14, 2), architecture.vision.patch
    ids = torch.tensor([[1] * 5 + [501] + [500] * picture.tokens + [2] * 6])
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.rand(140, 3 * 2 * patch**2),
        "image_grid_thw": torch.tensor([[1, 10, 14]]),
        "mm_token_type_ids": (ids == 500).int(),
    }
    return built(config), inputs, architecture, picture, 12


def small_views(family):
    from scripts.efficiency.configs import own_config

    architecture = SMALL[family]
    config = own_config(architecture)
    config.image_token_id = 500
    picture = picture_of(architecture, IMAGE_SIZE)
    placeholders, pixels = picture.tokens, torch.rand(picture.views, 3, 84, 84)
    inputs = {"pixel_values": pixels}
    if family == "llava_onevision":
        config.video_token_id = 501
        placeholders += 2 * 6  # newlines
        inputs = {"pixel_values": pixels[None], "image_sizes": torch.tensor([[168, 168]])}
    ids = torch.tensor([[1] * 5 + [500] * placeholders + [2] * 5])
    return built(config), {"input_ids": ids, **inputs}, architecture, picture, 10


def built(config):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_config(config, attn_implementation="eager")


def multiplied(model: nn.Module, inputs: dict) -> int:
    """FLOPs of a forward, by torch's counter."""

    def of_attention(query, key, value, *args, out_shape=None, **kwargs):
        batch, heads, queries, dim = query
        return 2 * batch * heads * queries * key[2] * (dim + value[3])

    def of_bmm(left, right, *args, out_shape=None, **kwargs):
        batch, rows, inner = left
        # Positions times frequencies, the angles of rotary embeddings: transformers 5.17 makes
        # that table by a matmul, 5.23 element by element.
        return 0 if inner == 1 else 2 * batch * rows * inner * right[2]

    aten = torch.ops.aten
    ours = {aten._scaled_dot_product_flash_attention_for_cpu: of_attention, aten.bmm: of_bmm}
    counter = FlopCounterMode(display=False, custom_mapping=ours)
    mask = torch.ones_like(inputs["input_ids"])
    with counter, torch.no_grad():
        model.eval()(**inputs, attention_mask=mask, logits_to_keep=1)
    return counter.get_total_flops()
