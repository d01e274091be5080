"""The spans of a run from pixels to the first token, placed from outside of the model.

Hooks on public modules mark where the vision tower, the projector and the language model start and
end; the functions that score and select are wrapped where the adapters look them up. Nothing of
this is there while the time to first token is taken.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest.mock import patch

from torch import nn

from scripts.efficiency.latency.clock import Stopwatch
from scripts.efficiency.latency.subject import Subject, language_model

TOWER, SCORING, PROJECTOR, PREFILL = "tower", "scoring", "projector", "prefill"
PARTS = (TOWER, SCORING, PROJECTOR, PREFILL)
# How the names of the modules begin whose functions are the scoring and the selection.
_METHOD = ("hiprune.scores", "hiprune.selection")


@dataclass(frozen=True)
class Organs:
    """The modules of a model between which the spans lie; ``embeddings`` begin the tower.

    ``deepstack``: mergers within the tower, which count as the projector.
    """

    embeddings: nn.Module
    projector: nn.Module
    language: nn.Module
    head: nn.Module
    deepstack: Sequence[nn.Module] = ()


def organs(subject: Subject) -> Organs:
    model, language = subject.model, language_model(subject)
    if subject.is_llava_package:
        clip = model.get_vision_tower().vision_tower.vision_model
        return Organs(clip.embeddings, language.mm_projector, language, model.lm_head)
    inner = model.model
    if subject.request.architecture.is_qwen:
        visual = inner.visual
        deepstack = getattr(visual, "deepstack_merger_list", ())
        return Organs(visual.patch_embed, visual.merger, language, model.lm_head, deepstack)
    clip = inner.vision_tower
    return Organs(clip.embeddings, inner.multi_modal_projector, language, model.lm_head)


class PrefillCache:
    """Takes the key-value cache that a run's prefill made."""

    def __init__(self) -> None:
        self.cache: Any = None

    def hook(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.cache = output.past_key_values

    def size(self) -> tuple[int, int]:
        """Tokens and bytes of all its layers' keys and values."""
        if hasattr(self.cache, "layers"):
            pairs = [(layer.keys, layer.values) for layer in self.cache.layers]
        else:  # before transformers 5: a tuple a layer
            pairs = list(self.cache)
        tokens = {keys.shape[-2] for keys, _ in pairs}
        if len(tokens) != 1:
            raise RuntimeError(f"the cache's layers hold {sorted(tokens)} tokens, not all the same")
        held = sum(x.numel() * x.element_size() for pair in pairs for x in pair)
        return tokens.pop(), held


@contextmanager
def instrumented(subject: Subject, watch: Stopwatch) -> Iterator[PrefillCache]:
    """Have a one-token run of the model fill the stopwatch with the spans of :data:`PARTS`.

    The vision tower's span ends where the projector's begins; what scores and selects lies within
    the two, and counts for itself.
    """
    parts, cache = organs(subject), PrefillCache()

    def before(module: nn.Module, act: Callable[[], None]) -> Any:
        return module.register_forward_pre_hook(lambda *_: act())

    def after(module: nn.Module, act: Callable[[], None]) -> Any:
        return module.register_forward_hook(lambda *_: act())

    def turn_to_projector() -> None:
        watch.leave(TOWER)
        watch.enter(PROJECTOR)

    hooks = [
        before(parts.embeddings, lambda: watch.enter(TOWER)),
        before(parts.projector, turn_to_projector),
        after(parts.projector, lambda: watch.leave(PROJECTOR)),
        before(parts.language, lambda: watch.enter(PREFILL)),
        parts.language.register_forward_hook(cache.hook),
        after(parts.head, lambda: watch.leave(PREFILL)),
    ]
    for merger in parts.deepstack:
        hooks.append(before(merger, lambda: watch.enter(PROJECTOR)))
        hooks.append(after(merger, lambda: watch.leave(PROJECTOR)))
    try:
        with _scoring_timed(watch):
            yield cache
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _scoring_timed(watch: Stopwatch) -> Iterator[None]:
    """Wrap the method's functions under every name that an adapter has for them."""

    def timed(function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            watch.enter(SCORING)
            try:
                return function(*args, **kwargs)
            finally:
                watch.leave(SCORING)

        return wrapper

    import_module("hiprune.models")
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if not name.startswith("hiprune.models"):
                continue
            for attribute, value in list(vars(module).items()):
                # Functions that a program makes of text say no module.
                if inspect.isfunction(value) and (value.__module__ or "").startswith(_METHOD):
                    stack.enter_context(patch.object(module, attribute, timed(value)))
        yield
