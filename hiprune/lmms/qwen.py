"""lmms-eval's model ``qwen2_5_vl_hiprune``: the stock (simple) ``qwen2_5_vl`` with HiPrune."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from hiprune.errors import HiPruneError
from hiprune.lmms.base import (
    DTYPES,
    PrunedLmms,
    chat_template_name,
    check_arguments,
    generation,
    unquoted,
)


class Qwen25VLHiPrune(PrunedLmms, Qwen2_5_VL):
    """The arguments of lmms-eval's ``qwen2_5_vl`` that concern images, and:

    Args:
        prune: False leaves the model unpruned.
        dtype: bfloat16 (as the stock class), float16 or float32.
    """

    def __init__(
        self,
        pretrained: str = "Qwen/Qwen2.5-VL-3B-Instruct",
        device: str = "cuda",
        device_map: str = "auto",
        batch_size: int | str = 1,
        use_cache: bool = True,
        attn_implementation: str | None = None,
        min_pixels: int = 256 * 28 * 28,
        max_pixels: int = 1605632,
        system_prompt: str = "You are a helpful assistant.",
        prune: bool = True,
        dtype: str = "bfloat16",
        **unknown: Any,
    ) -> None:
        super(Qwen2_5_VL, self).__init__()  # the stock class's own knows one dtype and CUDA alone
        check_arguments(unknown, prune, dtype, "qwen2_5_vl (for images)")
        pretrained = unquoted(pretrained)
        self._place(device, device_map)
        loading = (
            {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        )
        self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            pretrained, dtype=DTYPES[dtype], device_map=self.device_map, **loading
        ).eval()
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.processor = AutoProcessor.from_pretrained(
            pretrained, min_pixels=min_pixels, max_pixels=max_pixels
        )
        self._tokenizer = AutoTokenizer.from_pretrained(pretrained)
        self._config = self._model.config
        self._max_length = 2048
        self.batch_size_per_gpu = int(batch_size)
        self.use_cache = use_cache
        self.system_prompt = system_prompt
        self._start(
            prune,
            {
                "checkpoint": pretrained,
                "dtype": dtype,
                "prompt": f"{chat_template_name(self.processor.chat_template)}, {system_prompt!r}",
            },
        )

    @property
    def _language_model(self) -> torch.nn.Module:
        return self._model.model.language_model

    @torch.inference_mode()
    def _answer(
        self, contexts: Sequence[str], visuals: list[list], settings: dict, counted: bool
    ) -> list[str]:
        messages = [
            self._messages(context, images)
            for context, images in zip(contexts, visuals, strict=True)
        ]
        texts = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        images, _ = process_vision_info(messages)
        inputs = self.processor(
            text=texts, images=images, padding=True, padding_side="left", return_tensors="pt"
        ).to(self._model.device)
        ids = inputs["input_ids"]  # (B, T)
        visual = (ids == self._config.image_token_id).sum()
        text_tokens = int(inputs["attention_mask"].sum()) - int(visual)
        arguments = generation(settings, max_new_tokens=32768)
        with self._counting(visuals, text_tokens, arguments["num_beams"], counted):
            output = self._model.generate(
                **inputs,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                use_cache=self.use_cache,
                **arguments,
            )
        answers = self.processor.batch_decode(
            output[:, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [_cut(answer, settings.get("until", [])) for answer in answers]

    def _messages(self, context: str, images: list) -> list[dict]:
        """The conversation up to the answer: system prompt, images, question."""
        content = []
        for image in images:
            if not isinstance(image, Image.Image):
                raise HiPruneError(
                    f"visual of type {type(image).__name__}: expected images (PIL); video "
                    "tasks are not for this model"
                )
            content.append(
                {
                    "type": "image",
                    # As the stock class: JPEG at quality 85, of which the scores depend a little.
                    "image": self._encode_image_data_url(image),
                    "min_pixels": self.min_pixels,
                    "max_pixels": self.max_pixels,
                }
            )
        content.append({"type": "text", "text": context.replace("<image>", "")})
        return [
            {"role": "system", "content": self.system_prompt},
            {"role": "user", "content": content},
        ]


def _cut(answer: str, until: str | list[str]) -> str:
    """The answer up to the first of the task's stop strings, blank lines but."""
    for stop in [until] if isinstance(until, str) else until:
        if stop and stop != "\n\n":
            answer = answer.split(stop)[0]
    return answer
