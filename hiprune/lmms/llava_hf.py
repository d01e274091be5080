"""lmms-eval's model ``llava_hf_hiprune``: the stock (simple) ``llava_hf`` with HiPrune."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.models.simple.llava_hf import DEFAULT_IMAGE_TOKEN, VICUNA_CHAT_TEMPLATE, LlavaHf
from transformers import AutoModelForImageTextToText, AutoProcessor

from hiprune.images import pad_to_square
from hiprune.lmms.base import (
    DTYPES,
    PrunedLmms,
    chat_template_name,
    check_arguments,
    generation,
    unquoted,
)


class LlavaHfHiPrune(PrunedLmms, LlavaHf):
    """The arguments of lmms-eval's ``llava_hf`` that concern images, and:

    Args:
        prune: False leaves the model unpruned.
        dtype: float16, bfloat16 or float32.
        pad: LLaVA-1.5 alone: pad an image to a square with the mean colour, as the original does
            and the paper's numbers are measured; False: crop its centre, as transformers does.
    """

    text = "openai/clip-vit-large-patch14-336"  # whose tower all of LLaVA's checkpoints have

    def __init__(
        self,
        pretrained: str = "llava-hf/llava-1.5-7b-hf",
        revision: str = "main",
        device: str = "cuda",
        dtype: str = "float16",
        batch_size: int | str = 1,
        attn_implementation: str | None = None,
        device_map: str = "auto",
        chat_template: str | None = None,
        use_cache: bool = True,
        prune: bool = True,
        pad: bool = True,
        **unknown: Any,
    ) -> None:
        super(LlavaHf, self).__init__()  # the stock class's own refuses several CPU processes
        check_arguments(unknown, prune, dtype, "llava_hf (for images)")
        pretrained = unquoted(pretrained)
        self._place(device, device_map)
        loading = (
            {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        )
        self._model = AutoModelForImageTextToText.from_pretrained(
            pretrained,
            revision=revision,
            dtype=DTYPES[dtype],
            device_map=self.device_map,
            **loading,
        ).eval()
        self._image_processor = AutoProcessor.from_pretrained(pretrained, revision=revision)
        self._tokenizer = self._image_processor.tokenizer
        self._tokenizer.padding_side = "left"
        self._config = self._model.config
        self.pretrained = pretrained
        self.chat_template = chat_template or self._tokenizer.chat_template or VICUNA_CHAT_TEMPLATE
        self.batch_size_per_gpu = int(batch_size)
        self.use_cache = use_cache
        self.pad = pad and self._family == "llava"
        self._start(
            prune,
            {
                "checkpoint": pretrained,
                "dtype": dtype,
                "prompt": chat_template_name(self.chat_template),
                "pad": self.pad,
            },
        )

    @property
    def _language_model(self) -> torch.nn.Module:
        return self._model.model.language_model

    @torch.inference_mode()
    def _answer(
        self, contexts: Sequence[str], visuals: list[list], settings: dict, counted: bool
    ) -> list[str]:
        texts = [
            self._prompt(context, len(images))
            for context, images in zip(contexts, visuals, strict=True)
        ]
        images = [self._image(image) for row in visuals for image in row]
        inputs = self._image_processor(
            text=texts, images=images or None, padding=True, return_tensors="pt"
        ).to(self._model.device, self._model.dtype)
        ids = inputs["input_ids"]  # (B, T)
        visual = (ids == self._config.image_token_id).sum()
        text_tokens = int(inputs["attention_mask"].sum()) - int(visual)
        arguments = generation(settings, max_new_tokens=1024)
        with self._counting(visuals, text_tokens, arguments["num_beams"], counted):
            output = self._model.generate(
                **inputs,
                eos_token_id=self.eot_token_id,
                pad_token_id=self.eot_token_id,
                use_cache=self.use_cache,
                **arguments,
            )
        return self.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)

    def _prompt(self, context: str, n_images: int) -> str:
        """The conversation up to the answer; image placeholders go first unless it has its own."""
        question = context
        if n_images and DEFAULT_IMAGE_TOKEN not in context:
            context = " ".join([DEFAULT_IMAGE_TOKEN] * n_images) + "\n" + context
        prompt = self._render(context)
        if question not in prompt:  # a template for content in parts, which drops plain text
            parts = [{"type": "image"} for _ in range(n_images)]
            text = question.replace(DEFAULT_IMAGE_TOKEN, "").strip()
            prompt = self._render([*parts, {"type": "text", "text": text}])
        return prompt

    def _render(self, content: str | list[dict]) -> str:
        messages = [{"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=True
        )

    def _image(self, image: Any) -> Any:
        image = image.convert("RGB")
        if not self.pad:
            return image
        return pad_to_square(image, self._image_processor.image_processor.image_mean)
