"""Write a trained model as a checkpoint that transformers reads: weights and processor."""

from __future__ import annotations

from pathlib import Path

import torch
from convert_llava_to_hf import make_processor
from tiny_llava import family_settings
from tiny_qwen import CHAT_TEMPLATE
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from tiny_train.llava import LlavaTrainee
from tiny_train.trainee import Trainee


def export(trainee: Trainee, directory: Path) -> Path:
    """Write ``trainee``'s model to ``directory`` and return it; the dense heads stay behind.

    Weights in float16 (LLaVA) or bfloat16 (Qwen2.5-VL), as the released ones are.
    """
    model, tokenizer = trainee.model, trainee.prompts.tokenizer
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = trainee.prompts.end_id
    if isinstance(trainee, LlavaTrainee):
        vision = model.config.vision_config
        settings = family_settings(trainee.family, vision.image_size)
        processor = make_processor(settings, vision, tokenizer)
        dtype = torch.float16
    else:
        processor = Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(),
            chat_template=CHAT_TEMPLATE,
        )
        dtype = torch.bfloat16
    weights = {name: weight.detach().cpu() for name, weight in model.state_dict().items()}
    model.save_pretrained(
        directory, state_dict={name: weight.to(dtype) for name, weight in weights.items()}
    )
    processor.save_pretrained(directory)
    return directory
