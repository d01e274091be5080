"""A loaded model that several users ask: which settings it can have, and whose turn it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

import hiprune
from hiprune import HiPruneConfig, HiPruneError, PruneHandle
from hiprune.show.checkpoints import Checkpoint


@dataclass(frozen=True)
class Settings:
    """What a user sets.

    Attributes:
        budget: N' of the picture, tokens.
        alpha: share of anchors plus buffers.
        object_layer: l, counted from 1.
        method: out of :attr:`Loaded.methods`.
    """

    budget: int
    alpha: float
    object_layer: int
    method: str = "hiprune"


class Loaded:
    """
    A patch belongs to a model, and with it one configuration: users take turns. So an answer's
    time is not that of two answers at once, either.

    Args:
        checkpoint: what is loaded.
        device: where to.
        environ: HIPRUNE_* variables of it are the settings to begin with.
        text: CLIP's checkpoint, for methods that read the question beside a CLIP tower.

    Attributes:
        model, processor: of transformers.
        start: the configuration to begin with.
        methods: names of those that this model can give.
        least: the smallest N' that it takes.
        layers: of the vision tower.

    Raises:
        HiPruneError: a checkpoint that cannot be loaded or asked; a variable that does not fit it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str,
        environ: Mapping[str, str],
        text: str | None = None,
    ) -> None:
        self.checkpoint, self.text = checkpoint, text
        self.start = _start(checkpoint, environ)
        self.model, self.processor = checkpoint.load_whole(device)
        if not (self.processor.chat_template or self.processor.tokenizer.chat_template):
            raise HiPruneError(f"--model {checkpoint.name}: no chat template; expected one")
        self.layers = checkpoint.description.layers
        self._turn = threading.Lock()
        # Its own at N' of all tokens or one each of the views: the model says which it is.
        self.least = next((n for n in range(1, 65) if self._takes(self.start, n)), 1)
        with hiprune.prune(self.model, self.start, self._text_for(self.start)):
            pass  # the settings to begin with fit, or the reason is told
        self.methods = tuple(name for name in hiprune.methods() if self._gives(name))

    @property
    def family(self) -> str:
        return self.checkpoint.family

    @property
    def busy(self) -> bool:
        """Is somebody's question being answered?"""
        return self._turn.locked()

    def config(self, settings: Settings) -> HiPruneConfig:
        """A user's settings, and of the variables what the user cannot set.

        Raises:
            HiPruneError: a value that no model takes, or a method that this one does not give.
        """
        if settings.method not in self.methods:
            raise HiPruneError(
                f"method={settings.method!r}: expected one of {', '.join(self.methods)}"
            )
        found = {"retention": settings.budget, "alpha": settings.alpha}
        found["object_layer"] = settings.object_layer
        if settings.method == self.start.method:
            return replace(self.start, **found)
        return HiPruneConfig(method=settings.method, seed=self.start.seed, **found)

    def settings(self, tokens: int) -> Settings:
        """To begin with, of a picture of so many tokens."""
        start = self.start
        budget = max(self.least, start.budget(tokens))
        return Settings(budget, start.alpha, start.object_layer, start.method)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The model, to oneself."""
        with self._turn, torch.inference_mode():
            yield

    def pruned(self, config: HiPruneConfig) -> Any:
        """:func:`hiprune.prune`, for whoever has the turn."""
        return hiprune.prune(self.model, config, self._text_for(config))

    def _text_for(self, config: HiPruneConfig) -> str | None:
        return self.text if "text_embeds" in config.needs else None

    def _takes(self, config: HiPruneConfig, budget: int) -> bool:
        config = replace(config, retention=budget)
        try:
            with hiprune.prune(self.model, config, self._text_for(config)):
                return True
        except HiPruneError:
            return False

    def _gives(self, method: str) -> bool:
        layer, least = self.start.object_layer, max(self.least, 64)
        return any(
            self._takes(HiPruneConfig(object_layer=layer, method=method), budget)
            for budget in {self.least, least}
        )


def visual_tokens(model: Any, ids: torch.Tensor, handle: PruneHandle) -> int:
    """(1, T) ids of an unpruned prompt -> its placeholders."""
    tokens = (getattr(model.config, kind.token, None) for kind in handle.adapter.kinds)
    return sum(int((ids == token).sum()) for token in tokens if token is not None)


def _start(checkpoint: Checkpoint, environ: Mapping[str, str]) -> HiPruneConfig:
    family, size = checkpoint.description.family, checkpoint.description
    found = dict(environ)
    if checkpoint.tiny:  # a third of each, of LLaVA-NeXT too
        found.setdefault(family.retention_variable, checkpoint.tiny.retention)
        found.setdefault("HIPRUNE_OBJECT_LAYER", str(checkpoint.tiny.object_layer))
    return HiPruneConfig.from_env(family.name, found, size.layers, size.tokens)
