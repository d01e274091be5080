"""The registry of model families: which adapter is a model's, also where it is in a wrapper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hiprune.config import FAMILIES, Family
from hiprune.errors import HiPruneError

# (package, class that a supported model descends from) -> its adapter; model_type of a vision
# encoder of transformers -> the adapter that scores all of its layers. By name, so that a model
# package is imported, or needed, only where the user's model comes from it.
ADAPTERS: dict[tuple[str, str], Any] = {}
ENCODERS: dict[str, Any] = {}
# (package, class) of what is put around a model -> the attribute that holds it.
_WRAPPERS = {
    ("torch", "OptimizedModule"): "_orig_mod",
    ("torch", "DistributedDataParallel"): "module",
    ("torch", "DataParallel"): "module",
    ("torch", "FullyShardedDataParallel"): "module",
    ("deepspeed", "DeepSpeedEngine"): "module",
    ("peft", "PeftModel"): "base_model",
    ("peft", "BaseTuner"): "model",
}


def register(
    package: str,
    *classes: str,
    families: tuple[Family, ...] = (),
    encoders: tuple[str, ...] = (),
) -> Callable[[type], type]:
    """Class decorator: an adapter for models of these classes, and for these vision encoders.

    The families, with their defaults, join :data:`hiprune.config.FAMILIES`.

    An adapter of models has ``family(model)``, their family's name, and ``patch(model, config)``,
    which returns the handle; one of encoders ``run`` and ``extra_tokens``, as
    :mod:`hiprune.figures.maps` describes them.
    """

    def add(adapter: type) -> type:
        made = adapter()
        ADAPTERS.update({(package, name): made for name in classes})
        ENCODERS.update(dict.fromkeys(encoders, made))
        FAMILIES.update({family.name: family for family in families})
        return adapter

    return add


def adapter_of(model: Any) -> Any:
    """The adapter of a model.

    Raises:
        HiPruneError: a model of another family.
    """
    for cls in type(model).__mro__:
        adapter = ADAPTERS.get((cls.__module__.partition(".")[0], cls.__name__))
        if adapter is not None:
            return adapter
    names: dict[str, list[str]] = {}
    for package, name in sorted(ADAPTERS):
        names.setdefault(package, []).append(name)
    expected = ", or of ".join(f"{p}'s {', '.join(found)}" for p, found in names.items())
    raise HiPruneError(
        f"model: {type(model).__module__}.{type(model).__qualname__}; expected an instance of "
        f"{expected}"
    )


def unwrapped(model: Any) -> Any:
    """The model that wrappers such as PeftModel or DistributedDataParallel hold."""
    while (name := _wrapping(model)) is not None:
        model = getattr(model, name)
    return model


def _wrapping(model: Any) -> str | None:
    names = [(cls.__module__.partition(".")[0], cls.__name__) for cls in type(model).__mro__]
    if any(name in ADAPTERS for name in names):
        return None
    return next((_WRAPPERS[name] for name in names if name in _WRAPPERS), None)
