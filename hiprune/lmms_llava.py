"""lmms-eval's model ``llava_hiprune``: the stock ``llava`` with HiPrune and without its pitfalls.

What differs from the stock class:
- HiPrune is applied, by the HIPRUNE_* variables (``prune=False``: the unpruned baseline);
- ``dtype`` and the device can be chosen, and several processes run on the CPU as well;
- a batch gives the answers that its prompts give one by one: prompts are padded on the left, and a
  prompt without an image keeps its place among the others' images;
- an exception in generation ends the run and names the sample;
- the results file states the settings, the versions and the visual tokens that really ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from lmms_eval.models.simple.llava import Llava, best_fit_attn_implementation
from lmms_eval.utils import Collator
from tqdm import tqdm

from hiprune.errors import HiPruneError
from hiprune.lmms_record import RunRecord, state_in_results
from hiprune.models import llava as adapter

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class LlavaHiPrune(Llava):
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
        super(Llava, self).__init__()  # the stock class's own refuses all of the above
        _check(unknown, customized_config, prune, dtype)
        self.accelerator = Accelerator(
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(weeks=52))]
        )
        self._rank = self.accelerator.local_process_index
        self._world_size = self.accelerator.num_processes
        self._device, self.device_map = self._place(device, device_map)

        name = model_name or get_model_name_from_path(pretrained)
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

        self.handle = adapter.patch(self._model) if prune else None
        self.record = RunRecord(
            self.handle,
            adapter.family(self._model),
            {"checkpoint": pretrained, "dtype": dtype, "attention": attn_implementation},
        )
        state_in_results(self.record.as_dict)

    def _place(self, device: str, device_map: str) -> tuple[torch.device, str]:
        """Where the model lies, by the stock class's rules; a single process may be on the CPU."""
        if self._world_size > 1:
            return self.accelerator.device, str(self.accelerator.device)
        place = torch.device(device if device_map == "auto" else device_map)
        if place.type == "cuda" and not torch.cuda.is_available():
            raise HiPruneError(
                f"device={device!r}, device_map={device_map!r}: no CUDA device is available; "
                "accepted here is device_map=cpu"
            )
        return place, device_map

    def clean(self) -> None:
        """Drop the model, as lmms-eval asks before it scores the answers."""
        if self.handle:
            self.handle.remove()
            self.handle = None  # it holds the model
        super().clean()

    def generate_until(self, requests: list) -> list[str]:
        """One answer a request; prompts, order and defaults are the stock class's."""
        collator = Collator(
            [(*request.args, _is_padding(request)) for request in requests],
            lambda args: (-len(self.tok_encode(args[0])), args[0]),
            grouping=True,
        )
        answers = []
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as bar:
            for chunk in collator.get_batched(n=self.batch_size):
                contexts, settings, _, doc_ids, tasks, _, padding = zip(*chunk, strict=True)
                with self._named_failure(tasks[0], doc_ids):
                    visuals = [
                        list(to_visual(self.task_dict[task][split][doc_id]) or [])
                        for _, _, to_visual, doc_id, task, split, _ in chunk
                    ]
                    texts = self._answer(contexts, visuals, settings[0], not any(padding))
                answers.extend(texts)
                bar.update(len(chunk))
        self.record.gather(self.accelerator)
        return collator.get_original(answers)

    @torch.inference_mode()
    def _answer(self, contexts, visuals: list[list], settings: dict, counted: bool) -> list[str]:
        """Answers to B prompts, each with its own images (PIL); the sizes may differ."""
        prompts = [
            self._prompt(context, len(images))
            for context, images in zip(contexts, visuals, strict=True)
        ]
        input_ids, mask = self._tokenize(prompts)  # (B, T) each
        pixels, sizes = self._pixels(visuals)
        beams = settings.get("num_beams", 1)
        temperature = settings.get("temperature", 0)
        with self._llm_positions() as positions:
            output = self._model.generate(
                input_ids,
                attention_mask=mask,
                pad_token_id=self._pad_id,
                images=pixels,
                image_sizes=sizes,
                do_sample=temperature > 0,
                temperature=temperature,
                top_p=settings.get("top_p"),
                num_beams=beams,
                max_new_tokens=settings.get("max_new_tokens", 1024),
                use_cache=self.use_cache,
            )
        if counted:
            n_images = sum(map(len, visuals))
            text = int(mask.sum()) - int((input_ids == IMAGE_TOKEN_INDEX).sum())
            self.record.count(n_images, positions[0] // beams - text)
        return self.tokenizer.batch_decode(output, skip_special_tokens=True)

    @contextmanager
    def _named_failure(self, task: str, doc_ids: tuple) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            samples = ", ".join(map(str, doc_ids))
            message = f"task {task}, sample {samples}: {type(error).__name__}: {error}"
            if self.world_size > 1:
                # lmms-eval goes on after an exception, to a barrier that this process would miss
                # and the others wait at; the launcher ends them all when one exits.
                raise SystemExit(message) from error
            raise HiPruneError(message) from error

    @contextmanager
    def _llm_positions(self) -> Iterator[list[int]]:
        """The positions of the language model's first pass, padding not counted."""
        found: list[int] = []

        def look(module, args, kwargs) -> None:
            if not found:
                mask, embeds = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
                found.append(int(mask.sum()) if mask is not None else embeds.shape[:2].numel())

        hook = self._model.get_model().register_forward_pre_hook(look, with_kwargs=True)
        try:
            yield found
        finally:
            hook.remove()

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


def _is_padding(request: Any) -> bool:
    """lmms-eval repeats a request to even out the processes; its tokens are not to be counted."""
    metadata = request.metadata
    return isinstance(metadata, dict) and bool(metadata.get("__padding_only__"))


def _check(unknown: dict, customized_config: str | None, prune: object, dtype: str) -> None:
    if unknown:
        raise HiPruneError(
            f"model_args: {', '.join(sorted(unknown))}; accepted are the arguments of lmms-eval's "
            "llava, prune and dtype"
        )
    if customized_config is not None:
        raise HiPruneError(
            f"customized_config={customized_config!r}: the released llava package takes none"
        )
    if not isinstance(prune, bool):
        raise HiPruneError(f"prune={prune!r}: accepted is True or False")
    if dtype not in DTYPES:
        raise HiPruneError(f"dtype={dtype!r}: accepted is {', '.join(DTYPES)}")
