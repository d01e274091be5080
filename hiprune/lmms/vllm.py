"""lmms-eval's models whose names end in ``_vllm``: what the others ask, answered by vLLM.

The engine is that of lmms-eval's own model ``vllm``, pruned by HiPrune's plugin. Prompts and
pictures are those of the transformers path, so that scores differ by the engine alone. (lmms-eval's
own ``vllm`` puts pictures behind the question, as PNG, and asks for 1,024 tokens at least.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import torch
from lmms_eval.models.simple.vllm import VLLM
from PIL import Image
from transformers import AutoConfig
from vllm import SamplingParams

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.lmms.base import generation
from hiprune.lmms.checkpoint import model_class
from hiprune.lmms.hf import ARGUMENTS, HiPruneHf
from hiprune.lmms.llava_hf import LlavaHfHiPrune
from hiprune.lmms.qwen import Qwen25VLHiPrune
from hiprune.models.registry import adapter_of
from hiprune.models.vllm_plugin import MODELS, engine_name


class _InVllm:
    """Mixed into a model of ours, ahead of it.

    Args:
        arguments: that model's; others are vLLM's own (max_model_len, tensor_parallel_size, ...).
    """

    def __init__(self, pretrained: str, prune: bool = True, **arguments: Any) -> None:
        self._config_of_engine = {
            name: arguments.pop(name) for name in list(arguments) if name not in ARGUMENTS
        }
        self._settings: HiPruneConfig | None = None
        self._prunes = prune
        pixels = {name: arguments.get(name) for name in ("min_pixels", "max_pixels")}
        self._pixels = {name: value for name, value in pixels.items() if value is not None}
        super().__init__(pretrained, prune=prune, **arguments)

    def _load(
        self, pretrained: str, revision: str, dtype: str, attn_implementation: str | None
    ) -> None:
        config = AutoConfig.from_pretrained(pretrained, revision=revision)
        if not MODELS.keys() & set(config.architectures or []):
            raise HiPruneError(
                f"pretrained={pretrained!r}: {', '.join(config.architectures or [])} in vLLM; "
                f"expected one of {', '.join(MODELS)}"
            )
        with torch.device("meta"):  # transformers' own, which describes it; no weights are read
            self._model = model_class(config, pretrained)(config)
        overrides = {}
        if self._prunes:
            size = adapter_of(self._model).size(self._model)
            self._settings = HiPruneConfig.from_env(self._family, **size)
            overrides = {"hf_overrides": {"hiprune": asdict(self._settings)}}
        with _variables_aside():  # which would be a second telling
            self._engine = VLLM(
                pretrained,
                revision=revision,
                dtype=dtype,
                trust_remote_code=False,
                disable_log_stats=True,
                mm_processor_kwargs=self._pixels or None,
                **self._config_of_engine,
                **overrides,
            )

    def _start(self, prune: bool, details: dict[str, Any]) -> None:
        self.handle = None
        stated = SimpleNamespace(config=self._settings) if prune else None
        self._open_record(stated, {**details, "engine": engine_name()})

    @torch.inference_mode()
    def _answer(
        self, contexts: Sequence[Any], visuals: Sequence[list], settings: dict, counted: bool
    ) -> list[str]:
        arguments = generation(settings, self.max_new_tokens)
        if arguments["num_beams"] > 1:
            raise HiPruneError(f"num_beams={arguments['num_beams']} in vLLM: expected 1")
        sampling = SamplingParams(
            temperature=arguments["temperature"] or 0.0,
            top_p=arguments["top_p"] or 1.0,
            max_tokens=arguments["max_new_tokens"],
            stop_token_ids=[end for end in [self._ends().get("eos_token_id")] if end is not None],
        )
        prompts = [self._prompt(*asked) for asked in zip(contexts, visuals, strict=True)]
        outputs = self._engine.client.generate(prompts, sampling, use_tqdm=False)
        if counted:
            token = self._config.image_token_id
            tokens = sum(list(output.prompt_token_ids).count(token) for output in outputs)
            self.record.count(sum(map(len, visuals)), tokens)
        answers = self.processor.batch_decode(
            [list(output.outputs[0].token_ids) for output in outputs],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return [self._finished(answer, settings.get("until", [])) for answer in answers]

    def _prompt(self, context: Any, visuals: list) -> dict[str, Any]:
        prompt = {"prompt": self._text(context, visuals)}
        for visual in visuals:
            if not isinstance(visual, Image.Image):
                raise HiPruneError(
                    f"visual of type {type(visual).__name__} in vLLM: expected images (PIL)"
                )
        images = [self._image(visual) for visual in visuals]
        return prompt | ({"multi_modal_data": {"image": images}} if images else {})

    def clean(self) -> None:
        self._engine.client.llm_engine.engine_core.shutdown()
        del self._engine
        super().clean()


@contextmanager
def _variables_aside() -> Iterator[None]:
    """Without the HIPRUNE_* variables, which an engine and its processes read when they start."""
    aside = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("HIPRUNE_")}
    try:
        yield
    finally:
        os.environ.update(aside)


class HfInVllm(_InVllm, HiPruneHf):
    """``hiprune_hf_vllm``."""


class LlavaHfInVllm(_InVllm, LlavaHfHiPrune):
    """``llava_hf_hiprune_vllm``."""


class Qwen25VLInVllm(_InVllm, Qwen25VLHiPrune):
    """``qwen2_5_vl_hiprune_vllm``."""
