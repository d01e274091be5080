"""lmms-eval's model ``llava_hiprune``: the stock ``llava`` (the `llava` package) with HiPrune."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from lmms_eval.models.simple.llava import Llava, best_fit_attn_implementation

from hiprune.errors import HiPruneError
from hiprune.lmms.base import DTYPES, PrunedLmms, check_arguments, generation, unquoted


class LlavaHiPrune(PrunedLmms, Llava):
    """The arguments of lmms-eval's ``llava``, and:

    Args:
        prune: False leaves the model unpruned.
        dtype: float16 (as the stock class), bfloat16 or float32.
    """

    def __init__(
        self,
        pretrained: str = "liuhaotian/llava-v1.5-7b",
        truncation: bool | None = True,
        device: str = "cuda:0",
        batch_size: int | str = 1,
        model_name: str | None = None,
        attn_implementation: str | None = best_fit_attn_implementation,
        device_map: str = "cuda:0",
        conv_template: str = "vicuna_v1",
        use_cache: bool = True,
        tie_weights: bool = True,
        truncate_context: bool = False,
        customized_config: str | None = None,
        prune: bool = True,
        dtype: str = "float16",
        **unknown: Any,
    ) -> None:
        super(Llava, self).__init__()  # the stock class's own loads the model in its own way
        check_arguments(
            unknown, prune, dtype, "the arguments of lmms-eval's llava, prune and dtype"
        )
        if customized_config is not None:
            raise HiPruneError(
                f"customized_config={customized_config!r}: the released llava package takes none"
            )
        self._place(device, device_map)
        pretrained = unquoted(pretrained)
        name = model_name or _model_name(pretrained)
        self._tokenizer, self._model, self._image_processor, self._max_length = (
            load_pretrained_model(
                pretrained,
                None,
                name,
                device_map=self.device_map,
                attn_implementation=attn_implementation,
            )
        )
        self._model.eval().to(DTYPES[dtype])
        if self.device_map != "auto":
            self._model.to(self._device)
        if tie_weights:
            self._model.tie_weights()
        self._config = self._model.config
        # Generation goes on at the right end of the prompts, so padding belongs on the left.
        self._config.tokenizer_padding_side = "left"

        self.truncation = truncation
        self.batch_size_per_gpu = int(batch_size)
        self.conv_template = conv_template
        self.use_cache = use_cache
        self.truncate_context = truncate_context
        self._start(
            prune,
            {"checkpoint": pretrained, "dtype": dtype, "prompt": conv_template},
        )

    @property
    def _language_model(self) -> torch.nn.Module:
        return self._model.get_model()

    @torch.inference_mode()
    def _answer(
        self, contexts: Sequence[str], visuals: list[list], settings: dict, counted: bool
    ) -> list[str]:
        prompts = [
            self._prompt(context, len(images))
            for context, images in zip(contexts, visuals, strict=True)
        ]
        input_ids, mask = self._tokenize(prompts)  # (B, T) each
        pixels, sizes = self._pixels(visuals)
        text_tokens = int(mask.sum()) - int((input_ids == IMAGE_TOKEN_INDEX).sum())
        arguments = generation(settings, max_new_tokens=1024)
        with self._counting(visuals, text_tokens, arguments["num_beams"], counted):
            output = self._model.generate(
                input_ids,
                attention_mask=mask,
                pad_token_id=self._pad_id,
                images=pixels,
                image_sizes=sizes,
                use_cache=self.use_cache,
                **arguments,
            )
        return self.tokenizer.batch_decode(output, skip_special_tokens=True)

    @property
    def _pad_id(self) -> int:
        pad_id = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad_id is None else pad_id

    def _prompt(self, context: str, n_images: int) -> str:
        """The conversation up to the answer; image placeholders go first unless it has its own."""
        if n_images and DEFAULT_IMAGE_TOKEN not in context:
            context = " ".join([DEFAULT_IMAGE_TOKEN] * n_images) + "\n" + context
        conversation = conv_templates[self.conv_template].copy()
        conversation.append_message(conversation.roles[0], context)
        conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()

    def _tokenize(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [
            tokenizer_image_token(prompt, self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
            for prompt in prompts
        ]
        shape = (len(rows), max(map(len, rows)))
        input_ids = torch.full(shape, self._pad_id, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            input_ids[i, -len(row) :] = row
            mask[i, -len(row) :] = True
        return input_ids.to(self.device), mask.to(self.device)

    def _pixels(self, visuals: list[list]) -> tuple[Any, list | None]:
        """All images in the order of their placeholders: a (n, 3, H, W) tensor, or views a list.

        llava takes an image's features for every prompt of a batch, also where it has none: such a
        prompt gets a blank one, of which no token is used.
        """
        images = [image for row in visuals for image in row]
        if not images:
            return None, None
        processed = process_images(images, self._image_processor, self._config)
        blank, given = torch.zeros_like(processed[0]), iter(processed)
        pixels, sizes = [], []
        for row in visuals:
            pixels += [next(given) for _ in row] if row else [blank]
            sizes += [image.size for image in row] if row else [images[0].size]
        pixels = [image.to(self.device, self._model.dtype) for image in pixels]
        return (torch.stack(pixels) if isinstance(processed, torch.Tensor) else pixels), sizes


def _model_name(path: str) -> str:
    """The name that tells llava's loader what to load: its folder's, unless that says too little.

    The loader takes for LLaVA what has "llava" in its name alone; a folder's own configuration
    knows better.
    """
    name, config = get_model_name_from_path(path), Path(path, "config.json")
    if "llava" in name.lower() or not config.is_file():
        return name
    kinds = json.loads(config.read_text(encoding="utf-8")).get("architectures") or [""]
    return {"LlavaLlamaForCausalLM": "llava", "LlavaMistralForCausalLM": "llava_mistral"}.get(
        kinds[0], name
    )
