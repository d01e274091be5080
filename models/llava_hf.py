"""HiPrune for transformers' own LLaVA-1.5 and LLaVA-NeXT (llava-hf/*), 5.17 to 5.x.

Modifications, on one instance and until the handle's remove():
- ``forward``: where a prompt has images, the tower runs up to the output layer, the kept tokens
  are chosen, the projector sees these alone, and the prompt goes on, shorter, as embeddings. Steps
  that follow on such a prompt's cache have their attention mask and positions counted anew.
- ``generate``: has the images encoded once, by its first step; its loop is the model's own and
  sees the unpruned ids, so that what it returns, and what counts or looks at the prompt's tokens
  (``max_length``, streamers, a repetition penalty), is as unpatched.

Un-padding and newline tokens of LLaVA-NeXT are not used, as in the paper's code (merge type
``spatial``): kept tokens of the base view, then those of the grid in its raster order.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from hiprune.models.llava_hf_images import ImageEncoder, PromptImages, size_of
from hiprune.models.prompt import PromptPlan, ShrunkPrompt, images_of_rows
from hiprune.models.transformers_version import require_transformers
from torch import Tensor

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle

_IMAGE = 1  # the one kind of visual token in these prompts
# Inputs that count the unpruned prompt's positions and that the language model does without.
_UNUSED = ("token_type_ids", "mm_token_type_ids", "cache_position", "mm_encoder_outputs")


def family(model: Any) -> str:
    """ "llava_next" where images are cut into views, "llava" elsewhere."""
    return "llava_next" if hasattr(model.config, "image_grid_pinpoints") else "llava"


def patch(model: Any, config: HiPruneConfig | None = None) -> PruneHandle:
    """Apply HiPrune to a model of transformers; see :func:`hiprune.apply`."""
    require_transformers()
    name = family(model)
    size = size_of(model)
    config = (
        HiPruneConfig.from_env(name, **size) if config is None else config.resolve(name, **size)
    )
    encoder = ImageEncoder(model, config)  # raises before anything is changed
    handle = PruneHandle(model, config, name)
    handle.on_remove(encoder.tower.hook().remove)
    pruned = _PrunedModel(model, encoder, handle)
    handle.encode = pruned.encode
    handle.replace(model, "forward", _wrap(model, "forward", pruned.forward))
    handle.replace(model, "generate", _wrap(model, "generate", pruned.generate))
    return handle


def _wrap(model: Any, method: str, replacement: Callable[[dict], Any]) -> Callable:
    """``replacement`` of the arguments by name, behind the method's signature.

    generate looks at forward's signature to know what it accepts.
    """
    # The class's: what stands on the instance may be a wrapper of someone's that tells no names.
    signature = inspect.signature(getattr(type(model), method))

    @functools.wraps(getattr(model, method))
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind(model, *args, **kwargs).arguments)
        del arguments["self"]
        arguments.update(arguments.pop("kwargs", {}))
        return replacement(arguments)

    return wrapper


class _PrunedModel:
    """forward and generate of one patched model."""

    def __init__(self, model: Any, encoder: ImageEncoder, handle: PruneHandle) -> None:
        self.model = model
        self.encoder = encoder
        self.handle = handle
        self.original_forward, self.original_generate = model.forward, model.generate
        # A cache -> the prompt that it began with, for the steps that follow.
        self.prompts: WeakKeyDictionary[Any, ShrunkPrompt] = WeakKeyDictionary()
        # While generate runs: T of its prompts, and their images.
        self.prepared: tuple[int, PromptImages | None] | None = None

    def encode(self, pixels: Any, sizes: Any) -> list[Tensor]:
        batch = self.encoder.batch(pixels, sizes)
        features = batch.features
        self.handle.selections = batch.selections
        return features

    def generate(self, arguments: dict[str, Any]) -> Any:
        pixels, sizes = arguments.pop("pixel_values", None), arguments.pop("image_sizes", None)
        cache = arguments.get("past_key_values")
        if cache in self.prompts and cache.get_seq_length() > 0:
            raise HiPruneError(
                "past_key_values: the cache of a pruned prompt; accepted by generate is the whole "
                "prompt without a cache"
            )
        images = self._images(arguments, pixels, sizes)
        ids = _ids(arguments)
        if ids is not None:
            self.prepared = (ids.shape[1], images)
        try:
            return self.original_generate(**arguments)
        finally:
            self.prepared = None

    def forward(self, arguments: dict[str, Any]) -> Any:
        pixels, sizes = arguments.pop("pixel_values", None), arguments.pop("image_sizes", None)
        cache = arguments.get("past_key_values")
        cached = 0 if cache is None else int(cache.get_seq_length())
        if arguments.get("mm_encoder_outputs"):
            raise HiPruneError("mm_encoder_outputs: accepted is pixel_values, for HiPrune to score")
        if cached and not _has_images(pixels):
            if cache in self.prompts:
                self._go_on(arguments, self.prompts[cache], cached)
            return self.original_forward(**arguments)
        if cache is not None:
            self.prompts.pop(cache, None)  # of a prompt before the cache was reset

        images = self._images(arguments, pixels, sizes)
        if images is None:
            return self.original_forward(**arguments)
        if cached:
            raise HiPruneError(
                f"past_key_values: {cached} positions before a prompt with images; accepted is the "
                "whole prompt without a cache"
            )
        prompt = self._shrink(arguments, images)
        output = self.original_forward(**arguments)
        if not isinstance(output, tuple):
            output.image_hidden_states = images.features()
        for value in output if isinstance(output, tuple) else output.values():
            if hasattr(value, "get_seq_length"):
                self.prompts[value] = prompt
        return output

    def _images(self, arguments: dict, pixels: Any, sizes: Any) -> PromptImages | None:
        """The images of each prompt; None for prompts without one."""
        if _has_images(pixels):
            return self._new_images(arguments, pixels, sizes)
        ids, token = _ids(arguments), self.model.config.image_token_id
        if ids is None:
            return None
        length, images = self.prepared or (ids.shape[1], None)
        if images is not None:
            if ids.shape[1] < length or len(ids) % len(images.rows):
                raise HiPruneError(
                    f"input_ids: generate runs the prompt as {tuple(ids.shape)}; accepted is all "
                    f"of its {length} positions at once (without prefill_chunk_size)"
                )
            return images.repeated(len(ids) // len(images.rows))  # beams, or several answers
        # In generate, only its prompt counts: an answer may contain anything.
        if bool((ids[:, :length] == token).any()):
            raise HiPruneError(
                f"pixel_values=None: the prompt has image placeholders (token {token}); accepted "
                "are the pixels of their images"
            )
        return None

    def _new_images(self, arguments: dict, pixels: Any, sizes: Any) -> PromptImages:
        ids, config = _ids(arguments), self.model.config
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            if arguments.get(name) not in (None, getattr(config, name)):
                raise HiPruneError(
                    f"{name}={arguments[name]!r}: accepted is the model's own, "
                    f"{getattr(config, name)!r}"
                )
        if ids is None:
            raise HiPruneError("input_ids=None with pixel_values; accepted are the prompt's ids")
        counts = (ids == config.image_token_id).sum(dim=1).tolist()
        batch = self.encoder.batch(pixels, sizes)
        lengths = [span.placeholders for span in batch.spans]
        return PromptImages(batch, images_of_rows(counts, lengths, "pixel_values"))

    def _shrink(self, arguments: dict[str, Any], images: PromptImages) -> ShrunkPrompt:
        """Ids, mask, positions and labels of T positions -> embeddings and those of T' ones."""
        ids, mask = arguments.pop("input_ids"), arguments.get("attention_mask")
        if mask is not None and mask.shape != ids.shape:
            raise HiPruneError(
                f"attention_mask: shape {tuple(mask.shape)}; accepted is that of input_ids, "
                f"{tuple(ids.shape)} (a static cache makes others)"
            )
        if isinstance(arguments.get("logits_to_keep"), Tensor):
            raise HiPruneError(
                "logits_to_keep: a tensor counts unpruned positions; accepted is an int"
            )
        placeholder = ids == self.model.config.image_token_id
        if self.prepared is not None:
            placeholder[:, self.prepared[0] :] = False
        # What is read on the host is read here, before the tower runs.
        from_right = bool(arguments.get("logits_to_keep"))
        plan = PromptPlan(placeholder.long(), mask, {_IMAGE: images.spans()}, from_right)
        features = images.features()
        self.handle.selections = images.batch.selections
        prompt = plan.fill({_IMAGE: images.places()})
        embeds = self.model.get_input_embeddings()(prompt.take(ids))  # (B, T', C)
        for name in _UNUSED:
            arguments.pop(name, None)
        embeds = prompt.put(embeds, _IMAGE, features)
        arguments.update(inputs_embeds=embeds, attention_mask=prompt.mask)
        if arguments.get("labels") is not None:
            arguments["labels"] = prompt.take(arguments["labels"], padding=-100)
        _count_positions(arguments, 0, embeds.shape[1])
        return prompt

    def _go_on(self, arguments: dict[str, Any], prompt: ShrunkPrompt, cached: int) -> None:
        """Mask and positions of a step on the cache of a shrunk prompt."""
        tokens = arguments.get("input_ids")
        tokens = arguments.get("inputs_embeds") if tokens is None else tokens
        mask = prompt.mask_with(arguments.get("attention_mask"), cached, tokens.shape[1])
        arguments["attention_mask"] = mask
        arguments.pop("cache_position", None)
        _count_positions(arguments, cached, tokens.shape[1])


def _count_positions(arguments: dict[str, Any], cached: int, new: int) -> None:
    """Replace positions, where they are given, by those that the mask counts."""
    given, mask = arguments.get("position_ids"), arguments.get("attention_mask")
    if given is None:
        return
    if mask is None:
        positions = torch.arange(cached, cached + new, device=given.device).unsqueeze(0)
    else:
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new:]
    arguments["position_ids"] = positions.to(given.device)


def _ids(arguments: dict[str, Any]) -> Tensor | None:
    """The prompt's ids, which generate takes as ``inputs`` as well."""
    inputs = arguments.get("inputs")
    return arguments.get("input_ids") if inputs is None else inputs


def _has_images(pixels: Any) -> bool:
    return pixels is not None and (not isinstance(pixels, Tensor) or len(pixels) > 0)
