"""apply and prune: HiPrune on a model instance, and off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hiprune.config import HiPruneConfig
from hiprune.handle import PruneHandle
from hiprune.models.registry import adapter_of, unwrapped


def apply(model: Any, config: HiPruneConfig | None = None, text: Any = None) -> PruneHandle:
    """Turn HiPrune on for one model instance, until ``remove()`` of the handle that it returns.

    Args:
        model: LLaVA-1.5 or LLaVA-NeXT, of the `llava` package or of transformers, or another of
            transformers' models that :data:`hiprune.models.registry.ADAPTERS` names (Qwen2-VL,
            Qwen2.5-VL, Qwen3-VL, ...). A model in a wrapper (peft's, torch.compile's, DDP's,
            DeepSpeed's) is taken out of it: the wrapper then runs the patched model.
        config: the hyper-parameters; unless given, HIPRUNE_* variables and the defaults of the
            model's family.
        text: for a method that reads the prompt's words ("hiprune_pp", "cdpruner"), on a model with
            a CLIP tower: the tower's own checkpoint, whose text encoder is loaded (a path or a
            name), or a :class:`hiprune.ClipText`. The `llava` package tells the checkpoint itself.

    Returns:
        The handle; its ``selections`` tell which tokens the last forward kept.

    Raises:
        HiPruneError: a model of another family, one that already has HiPrune applied, or a budget,
            layer or method that this model cannot have.
    """
    model = unwrapped(model)
    return adapter_of(model).patch(model, config, text)


@contextmanager
def prune(
    model: Any, config: HiPruneConfig | None = None, text: Any = None
) -> Iterator[PruneHandle]:
    """:func:`apply` for the length of a ``with`` block, also when it ends in an exception."""
    handle = apply(model, config, text)
    try:
        yield handle
    finally:
        handle.remove()
