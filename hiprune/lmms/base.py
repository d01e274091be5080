"""What our lmms-eval models share: the loop over requests, failures with a name, counted tokens.

What differs from the stock classes:
- HiPrune is applied, by the HIPRUNE_* variables (``prune=False``: the unpruned baseline);
- ``dtype`` and the device can be chosen, and several processes run on the CPU as well;
- a batch gives the answers that its prompts give one by one: prompts are padded on the left, and a
  prompt without an image keeps its place among the others' images;
- an exception in generation ends the run and names the sample;
- the results file states the settings, the versions and the visual tokens that really ran.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from lmms_eval.utils import Collator
from tqdm import tqdm

from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle
from hiprune.lmms.answers import Answers, Kept, sources
from hiprune.lmms.record import RunRecord, state_in_results
from hiprune.models.registry import adapter_of
from hiprune.patching import apply

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class PrunedLmms:
    """Mixed into a stock class of lmms-eval, ahead of it.

    A model sets ``_model``, ``_tokenizer`` and the like as its stock class does, calls
    :meth:`_place` before and :meth:`_start` after loading, and defines ``_language_model`` and
    ``_answer``.
    """

    _language_model: torch.nn.Module  # what reads the visual tokens
    text: str | None = None  # of apply: the checkpoint whose text encoder reads the prompt's words

    @abstractmethod
    def _answer(
        self, contexts: Sequence[str], visuals: list[list], settings: dict, counted: bool
    ) -> list[str]:
        """Answers to B prompts, each with its own images (PIL); the sizes may differ."""

    def _place(self, device: str, device_map: str) -> None:
        """Where the model is to lie, by the stock classes' rules; also for several on the CPU."""
        self.accelerator = Accelerator(
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=24))]
        )
        self._rank = self.accelerator.local_process_index
        self._world_size = self.accelerator.num_processes
        if self._world_size > 1:
            self._device, self.device_map = self.accelerator.device, str(self.accelerator.device)
            return
        self._device = torch.device(device if device_map == "auto" else device_map)
        self.device_map = device_map
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise HiPruneError(
                f"device={device!r}, device_map={device_map!r}: no CUDA device is available; "
                "expected device_map=cpu here"
            )

    def _start(self, prune: bool, details: dict[str, Any]) -> None:
        """Apply HiPrune to the loaded model, unless ``prune`` is False, and open the record."""
        self.handle: PruneHandle | None = apply(self._model, text=self.text) if prune else None
        attention = self._model.config._attn_implementation  # what runs, whatever was asked for
        self._open_record(self.handle, {**details, "attention": attention})

    def _open_record(self, pruned: Any | None, details: dict[str, Any]) -> None:
        """``pruned``: whose ``config`` the record states; None where nothing is pruned."""
        details = {
            **details,
            "revision": getattr(self._model.config, "_commit_hash", None),  # None of a folder
            "device": self._device.type,
        }
        self.record = RunRecord(pruned, self._family, details)
        state_in_results(self.record.as_dict)
        decides = self.record.as_dict
        self._answers = Answers.of_environment(self._rank, lambda: [decides(), sources()])

    @property
    def _family(self) -> str:
        return adapter_of(self._model).family(self._model)

    def clean(self) -> None:
        """Drop the model, as lmms-eval asks before it scores the answers."""
        if self.handle:
            self.handle.remove()
            self.handle = None
        super().clean()

    def generate_until(self, requests: list) -> list[str]:
        """One answer a request; prompts, order and defaults are the stock class's."""
        collator = Collator(
            [(*self._arguments(request), _is_padding(request)) for request in requests],
            lambda args: (-len(self.tokenizer.encode(args[0])), args[0]),
            grouping=True,
        )
        answers = []
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as bar:
            for chunk in collator.get_batched(n=self.batch_size):
                _, settings, _, doc_ids, tasks, _, padding = zip(*chunk, strict=True)
                with self._named_failure(tasks[0], doc_ids):
                    asked = [
                        self._ask(context, to_prompt, self.task_dict[task][split][doc_id])
                        for context, _, to_prompt, doc_id, task, split, _ in chunk
                    ]
                    contexts, visuals = zip(*asked, strict=True)
                    texts = self._kept_or_new(tasks, contexts, visuals, settings[0], padding)
                answers.extend(texts)
                bar.update(len(chunk))
        self.record.gather(self.accelerator)
        return collator.get_original(answers)

    def _arguments(self, request: Any) -> tuple:
        """Context, generation settings, what makes a prompt of a document, and where that is."""
        return request.args

    def _ask(self, context: str, to_prompt: Callable, doc: Any) -> tuple[Any, list]:
        """The prompt of a document, as ``_answer`` takes it, and its images."""
        return context, list(to_prompt(doc) or [])

    def _kept_or_new(
        self,
        tasks: Sequence[str],
        contexts: Sequence[Any],
        visuals: Sequence[list],
        settings: dict,
        padding: Sequence[bool],
    ) -> list[str]:
        """Answers to B prompts; those that an earlier start of the run has given, as they were."""
        keys = [
            self._answers.key(*prompt, settings)
            for prompt in zip(tasks, contexts, visuals, strict=True)
        ]
        found = [self._answers.get(key) for key in keys]
        new = [i for i, kept in enumerate(found) if kept is None]
        counted = not any(padding)
        if new:
            before = self.record.images, self.record.visual_tokens
            texts = self._answer(
                [contexts[i] for i in new], [visuals[i] for i in new], settings, counted
            )
            images = self.record.images - before[0]
            tokens = self.record.visual_tokens - before[1]
            for i, text in zip(new, texts, strict=True):
                found[i] = Kept(text, images, tokens)
                if counted:
                    self._answers.keep(keys[i], found[i])
                images = tokens = 0  # all of the batch are with its first
        for i, kept in enumerate(found):
            if counted and i not in new:
                self.record.count(kept.images, kept.visual_tokens)
        return [kept.text for kept in found]

    @contextmanager
    def _counting(
        self, visuals: list[list], text_tokens: int, beams: int, counted: bool
    ) -> Iterator[None]:
        """Count the visual tokens of the generation inside: what the language model reads first.

        Args:
            visuals: the images of each prompt.
            text_tokens: of all prompts, placeholders and padding left out.
            beams: copies of each prompt that run.
            counted: False for prompts that only even out the processes.
        """
        positions: list[int] = []

        def look(module, args, kwargs) -> None:
            if not positions:
                mask, embeds = kwargs.get("attention_mask"), kwargs["inputs_embeds"]
                positions.append(int(mask.sum()) if mask is not None else embeds.shape[:2].numel())

        hook = self._language_model.register_forward_pre_hook(look, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
        if counted:
            self.record.count(sum(map(len, visuals)), positions[0] // beams - text_tokens)

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


def generation(settings: dict, max_new_tokens: int) -> dict[str, Any]:
    """A task's generation settings -> generate's arguments: greedy unless it says otherwise."""
    temperature = settings.get("temperature") or 0  # a task may say "null"
    return {
        "do_sample": temperature > 0,
        "temperature": temperature if temperature > 0 else None,
        "top_p": settings.get("top_p") if temperature > 0 else None,
        "num_beams": settings.get("num_beams", 1),
        "max_new_tokens": settings.get("max_new_tokens", max_new_tokens),
    }


def chat_template_name(template: object) -> str:
    """A chat template, too long to be stated itself."""
    return f"chat template {hashlib.sha256(str(template).encode()).hexdigest()[:12]}"


def unquoted(path: str) -> str:
    """A checkpoint as lmms-eval hands it on; quotes are how a comma gets through its arguments."""
    text = str(path)
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text


def check_arguments(unknown: dict, prune: object, dtype: str, expected: str) -> None:
    """Raise a HiPruneError for arguments that a model of ours does not take."""
    if unknown:
        raise HiPruneError(f"model_args: {', '.join(sorted(unknown))}; expected {expected}")
    if not isinstance(prune, bool):
        raise HiPruneError(f"prune={prune!r}: expected True or False")
    if dtype not in DTYPES:
        raise HiPruneError(f"dtype={dtype!r}: expected {', '.join(DTYPES)}")


def _is_padding(request: Any) -> bool:
    """lmms-eval repeats a request to even out the processes; its tokens are not to be counted."""
    metadata = request.metadata
    return isinstance(metadata, dict) and bool(metadata.get("__padding_only__"))
