"""Write a trained model as a checkpoint that transformers reads: weights and processor."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from shutil import copyfile

import torch
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from scripts.convert.to_hf import make_processor
from scripts.tiny.llava import LlavaTrainee
from scripts.tiny.tokens import QWEN_TEMPLATE
from scripts.tiny.trainee import Trainee


def export(trainee: Trainee, directory: Path) -> Path:
    """Write ``trainee``'s model to ``directory`` and return it; the dense heads stay behind.

    ``trainee``'s own weights are rounded to what is written.

    Weights in float16 (LLaVA) or bfloat16 (Qwen2.5-VL), as the released ones are. A LLaVA's
    tokenizer.model, which the `llava` package needs, lies with it.
    """
    tokenizer = trainee.prompts.tokenizer
    if isinstance(trainee, LlavaTrainee):
        processor = make_processor(trainee.settings, trainee.model.config.vision_config, tokenizer)
        dtype = torch.float16
    else:
        processor = qwen_processor(tokenizer)
        dtype = torch.bfloat16
    for weight in trainee.model.parameters():  # what is measured from here on is what is shipped
        weight.data = weight.data.to(dtype).to(weight.dtype)
    model = deepcopy(trainee.model).cpu().to(dtype)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = trainee.prompts.end_id
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    if trainee.prompts.pieces:
        copyfile(trainee.prompts.pieces, directory / "tokenizer.model")
    return directory


def qwen_processor(tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLProcessor:
    """The real image and video processors around ``tokenizer``."""
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=QWEN_TEMPLATE,
    )
