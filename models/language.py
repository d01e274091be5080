"""forward and generate of a patched model of transformers: one way for all families.

The images are encoded and the prompt is shortened once, ahead of the model's own method, which goes
on from embeddings. Modifications, on one instance and until the handle's remove():

- ``forward``, given pixels: drops the placeholders of dropped tokens and goes on, shorter. Steps
  that follow on such a prompt's cache have their attention mask and positions counted anew.
- ``generate``: does so before the first step. The unpruned ids go along with the embeddings: they
  stand in front of the answer, and what looks at the prompt (lengths, penalties, streamers) sees
  all of it.

What cannot be right on this way is refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any

import torch
from hiprune.models.shrink import ShortPrompt, Shrunk, shorten_labels, shrink
from hiprune.models.visuals import BESIDE, Beside
from torch import Tensor

from hiprune.errors import HiPruneError
from hiprune.handle import STATE, Part, PruneHandle

# On a cache that began with a pruned prompt: it stays with a deep copy of the cache.
_MARK = "_hiprune_prompt"
# What counts tokens of the prompt in a way that the embeddings' shorter one does not answer to.
_REFUSED = {
    "assistant_model": "no assistant (drafts are checked against the unpruned prompt's length)",
    "prompt_lookup_num_tokens": "none (drafts are checked against the unpruned prompt's length)",
    "assistant_early_exit": "none (drafts are checked against the unpruned prompt's length)",
    "use_mtp": "none (drafts are checked against the unpruned prompt's length)",
    "prefill_chunk_size": "none (the pruned prompt runs at once)",
    "token_healing": "none (it changes ids that are embedded already)",
}
_TOWER_OUTPUTS = ("output_attentions", "output_hidden_states")


@dataclass
class _Generation:
    """A generate that runs: its prompt's (B, T) ids and mask, where it is pruned, and its cache."""

    handle: PruneHandle
    ids: Tensor | None = None
    mask: Tensor | None = None
    short: ShortPrompt | None = None
    beside: Beside | None = None
    cache: Any = None

    def beside_of(self, arguments: dict[str, Any]) -> Beside | None:
        """Of a step: it belongs to the first one, which alone has embeddings."""
        embeds = arguments.get("inputs_embeds")
        if self.beside is None or embeds is None:
            return None
        copies = len(embeds) // len(self.ids)
        return self.beside.copies(copies)


_GENERATION: ContextVar[_Generation | None] = ContextVar("hiprune_generation", default=None)


class LanguageModel(Part):
    """A model with a language-model head, of any family."""

    def forward(model: Any, original: Callable, *args: Any, **kwargs: Any) -> Any:
        handle: PruneHandle = vars(model)[STATE]
        adapter, generation = handle.adapter, _GENERATION.get()
        if generation is not None and generation.handle is handle and not args:
            cache = _cache(kwargs)
            own = cache is generation.cache or getattr(cache, _MARK, None) is None
            if own and not adapter.has_pixels(kwargs):
                # A step of generate, which has everything right already.
                return _run(original, kwargs, generation.beside_of(kwargs))

        arguments = by_name(model, "forward", args, kwargs)
        cache = _cache(arguments)
        cached = 0 if cache is None else int(cache.get_seq_length())
        if not adapter.has_pixels(arguments):
            short = getattr(cache, _MARK, None)
            if cached == 0:
                adapter.run_as_text(model, arguments)
            elif short is not None:
                short.go_on(arguments, cached, adapter.keeps_positions)
            return original(**arguments)
        if cached:
            raise HiPruneError(
                f"past_key_values: {cached} positions of an earlier turn before a prompt with "
                "images; expected the whole conversation without a cache"
            )
        if isinstance(arguments.get("logits_to_keep"), Tensor):
            raise HiPruneError(
                "logits_to_keep: a tensor counts positions of the unpruned prompt; expected an int"
            )
        wanted = {name: arguments[name] for name in _TOWER_OUTPUTS if arguments.get(name)}
        shrunk = shrink(adapter, model, handle, arguments, wanted)
        shorten_labels(arguments, shrunk.short.prompt)
        return_dict = arguments.get("return_dict")
        if return_dict is None:
            return_dict = getattr(model.config, "return_dict", True)
        output = _run(original, {**arguments, "return_dict": True}, shrunk.beside)
        _complete(output, shrunk)
        return output if return_dict else output.to_tuple()

    def generate(model: Any, original: Callable, *args: Any, **kwargs: Any) -> Any:
        handle: PruneHandle = vars(model)[STATE]
        arguments = by_name(model, "generate", args, kwargs)
        if arguments.get("inputs") is not None and arguments.get("input_ids") is None:
            arguments["input_ids"] = arguments.pop("inputs")
        ids = arguments.get("input_ids")

        def setting(name: str) -> Any:
            found = arguments.get(name)
            for config in (arguments.get("generation_config"), model.generation_config):
                found = getattr(config, name, None) if found is None else found
            return found

        adapter, cache = handle.adapter, _cache(arguments)
        if setting("is_assistant") and adapter.has_placeholders(model, ids):
            raise HiPruneError(
                "assistant_model: a model with HiPrune applied, and a prompt with images; expected "
                "an assistant without HiPrune (call remove() on its handle first)"
            )
        if getattr(cache, _MARK, None) is not None and cache.get_seq_length() > 0:
            raise HiPruneError(
                "past_key_values: the cache of a pruned prompt, which does not line up with the "
                "ids; expected the whole conversation without a cache"
            )
        if not adapter.has_pixels(arguments):
            adapter.run_as_text(model, arguments)
            with _running(_Generation(handle)):
                return original(**arguments)

        if cache is not None and cache.get_seq_length() > 0:
            raise HiPruneError(
                f"past_key_values: {int(cache.get_seq_length())} positions of an earlier turn "
                "before a prompt with images; expected the whole conversation without a cache"
            )
        for name, expected in _REFUSED.items():
            if setting(name):
                raise HiPruneError(f"{name}={_named(setting(name))}: expected {expected}")
        if setting("cache_implementation") == "paged":
            raise HiPruneError("cache_implementation='paged': expected a cache that runs pixels")
        if ids is not None and arguments.get("attention_mask") is None:
            arguments["attention_mask"] = _mask_of(
                ids, setting("pad_token_id"), setting("eos_token_id")
            )
        mask = arguments.get("attention_mask")
        with torch.no_grad():  # as generate does; nobody asks for gradients of what it made
            shrunk = shrink(adapter, model, handle, arguments, None)
        if arguments["attention_mask"] is None:
            arguments["attention_mask"] = shrunk.short.prompt.real.long()
        arguments["input_ids"] = ids
        with _running(_Generation(handle, ids, mask, shrunk.short, shrunk.beside)):
            return original(**arguments)

    # What generate asks of itself, counted on the ids of the unpruned prompt as without HiPrune.

    def _prepare_generated_length(model: Any, original: Callable, **kwargs: Any) -> Any:
        generation = _pruned_generation(model)
        if generation is not None:
            kwargs |= {"model_input_name": "input_ids", "inputs_tensor": generation.ids}
        return original(**kwargs)

    def _prepare_cache_for_generation(
        model: Any,
        original: Callable,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> Any:
        generation = _pruned_generation(model)
        if generation is not None:  # T' positions and those of the answer
            lost = generation.ids.shape[1] - generation.short.width
            max_cache_length = generation_config.max_length - 1 - lost
        found = original(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        running = _GENERATION.get()
        if running is not None and running.handle is vars(model)[STATE]:
            running.cache = _cache(model_kwargs)
            if generation is not None and running.cache is not None:
                setattr(running.cache, _MARK, generation.short)
        return found

    def _get_logits_processor(model: Any, original: Callable, *args: Any, **kwargs: Any) -> Any:
        generation = _pruned_generation(model)
        if generation is not None:
            kwargs["encoder_input_ids"] = generation.ids
            given, mask = kwargs.get("model_kwargs") or {}, generation.mask
            if mask is not None:  # a repetition penalty leaves out what pads the ids
                short = given.get("inputs_embeds")
                copies = 1 if short is None else len(short) // len(mask)
                mask = mask.repeat_interleave(copies, dim=0)
            kwargs["model_kwargs"] = {**given, "attention_mask": mask}
        return original(*args, **kwargs)


def _run(original: Callable, arguments: dict[str, Any], beside: Beside | None) -> Any:
    """The model's own forward of a pruned prompt, and that a part of ours took what is beside."""
    if beside is None:
        return original(**arguments)
    output = original(**arguments, **{BESIDE: beside})
    if not beside.taken:
        raise HiPruneError(
            "model: its language model ran without the visual features that go beside the "
            "embeddings; expected the module that HiPrune was applied to (one that was compiled, "
            "or replaced, before or since is not seen)"
        )
    return output


def _pruned_generation(model: Any) -> _Generation | None:
    """The generate of this model that is running, where its prompt was pruned."""
    found = _GENERATION.get()
    ours = found is not None and found.handle is vars(model)[STATE] and found.short is not None
    return found if ours else None


@contextmanager
def _running(generation: _Generation) -> Iterator[None]:
    token = _GENERATION.set(generation)
    try:
        yield
    finally:
        _GENERATION.reset(token)


def _complete(output: Any, shrunk: Shrunk) -> None:
    """What the unpatched model returns of its images, and the mark on the cache."""
    cache = _cache(output)
    if cache is not None:
        setattr(cache, _MARK, shrunk.short)
    names = {each.name for each in fields(output)}
    for kind, encoded in shrunk.encoded.items():
        if f"{kind}_outputs" in names:
            setattr(output, f"{kind}_outputs", encoded.output)
        elif f"{kind}_hidden_states" in names:  # before transformers 5.23
            found = getattr(encoded.output, "pooler_output", None)
            if not isinstance(found, Tensor):
                found = torch.cat(encoded.features)
            setattr(output, f"{kind}_hidden_states", found)


def _cache(found: Any) -> Any:
    """Of arguments or an output; transformers 5.24 renames it."""
    cache = found.get("cache")
    return found.get("past_key_values") if cache is None else cache


def _mask_of(ids: Tensor, pad: Any, end: Any) -> Tensor | None:
    """(B, T): what generate makes of ids that come without a mask."""
    ends = end if isinstance(end, (list, tuple)) else [end]
    if isinstance(pad, Tensor):
        pad = int(pad)
    if pad is None or pad in ends or not bool((ids == pad).any()):
        return None
    return (ids != pad).long()


def _named(value: Any) -> str:
    return type(value).__name__ if isinstance(value, torch.nn.Module) else repr(value)


def by_name(model: Any, method: str, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of the model's method, each under its name."""
    signature = inspect.signature(getattr(type(model), method))
    first, *_ = signature.parameters
    arguments = dict(signature.bind(model, *args, **kwargs).arguments)
    del arguments[first]
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return arguments
