"""apply and prune: HiPrune on a model instance, and off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle

# (package and class that a supported model descends from) -> adapter. By name, so that no model
# package is imported, or needed, unless the user's model comes from it.
ADAPTERS = {
    ("llava", "LlavaMetaForCausalLM"): "hiprune.models.llava",
    ("transformers", "LlavaForConditionalGeneration"): "hiprune.models.llava_hf",
    ("transformers", "LlavaNextForConditionalGeneration"): "hiprune.models.llava_hf",
    ("transformers", "Qwen2_5_VLForConditionalGeneration"): "hiprune.models.qwen2_5_vl",
}


def apply(model: Any, config: HiPruneConfig | None = None) -> PruneHandle:
    """Turn HiPrune on for one model instance, until ``remove()`` of the handle that it returns.

    Args:
        model: LLaVA-1.5 or LLaVA-NeXT, of the `llava` package or of transformers, or
            transformers' Qwen2.5-VL.
        config: the hyper-parameters; unless given, HIPRUNE_* variables and the defaults of the
            model's family.

    Returns:
        The handle; its ``selections`` tell which tokens the last forward kept.

    Raises:
        HiPruneError: a model of another family, one that already has HiPrune applied, or a budget
            or layer that this model cannot have.
    """
    return _adapter(model).patch(model, config)


@contextmanager
def prune(model: Any, config: HiPruneConfig | None = None) -> Iterator[PruneHandle]:
    """:func:`apply` for the length of a ``with`` block, also when it ends in an exception."""
    handle = apply(model, config)
    try:
        yield handle
    finally:
        handle.remove()


def _adapter(model: Any) -> Any:
    for cls in type(model).__mro__:
        adapter = ADAPTERS.get((cls.__module__.partition(".")[0], cls.__name__))
        if adapter is not None:
            return import_module(adapter)
    accepted = ", ".join(f"{package}'s {name}" for package, name in ADAPTERS)
    raise HiPruneError(
        f"model: {type(model).__module__}.{type(model).__qualname__}; accepted is an instance of "
        f"{accepted}"
    )
