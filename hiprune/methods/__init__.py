"""The methods that choose tokens, one a file; "hiprune" is the paper's.

The others are this repository's own implementations, with the same budget and the same patch, so
that only the choice differs. A new one is a file here and a name in :data:`METHODS`.
"""

from __future__ import annotations

from typing import Any

from hiprune.methods.base import NEEDS, Images, Method
from hiprune.methods.cls import Cls
from hiprune.methods.hiprune import HiPrune
from hiprune.methods.random import Random
from hiprune.methods.uniform import Uniform

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (HiPrune, Random, Uniform, Cls)
}
__all__ = ["METHODS", "NEEDS", "Images", "Method", "method_of", "methods"]


def methods() -> tuple[str, ...]:
    """Names of the methods, "hiprune" first."""
    return tuple(METHODS)


def method_of(config: Any) -> Method:
    """A HiPruneConfig's method with its settings, for one patched model."""
    return METHODS[config.method].configured(config)
