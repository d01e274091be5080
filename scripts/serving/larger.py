"""A Qwen2.5-VL whose language model is a real share of the time: sizes of Qwen2.5-0.5B.

python -m scripts.serving.larger FOLDER          then --checkpoint FOLDER, or CKPT=FOLDER

Weights are random, and what it answers means nothing; tower, tokenizer and processor are the small
model's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import transformers

from scripts.benchmarks import QWEN_TINY
from scripts.efficiency.latency.build import draw_weights, without_initialisation

TEXT = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "layer_types": ["full_attention"] * 24,
}
SECTION = [8, 12, 12]  # of M-RoPE: half of a head's 64 channels


def make(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(QWEN_TINY.checkpoint)
    for name, value in TEXT.items():
        setattr(config.text_config, name, value)
    config.text_config.rope_parameters["mrope_section"] = SECTION
    config.vision_config.out_hidden_size = TEXT["hidden_size"]
    with without_initialisation():
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    draw_weights(model, seed=0)
    model.save_pretrained(folder)
    transformers.AutoProcessor.from_pretrained(QWEN_TINY.checkpoint).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m scripts.serving.larger")
    parser.add_argument("folder", type=Path, help="where to save it (1.4 GB)")
    make(parser.parse_args().folder)
