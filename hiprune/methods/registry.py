"""The registry: a new method is a file beside this one and a name here."""

from __future__ import annotations

from typing import Any

from hiprune.methods.base import Method
from hiprune.methods.cdpruner import CDPruner
from hiprune.methods.cls import Cls
from hiprune.methods.divprune import DivPrune
from hiprune.methods.hiprune import HiPrune
from hiprune.methods.hiprune_pp import HiPrunePP
from hiprune.methods.random import Random
from hiprune.methods.scope import Scope
from hiprune.methods.uniform import Uniform
from hiprune.methods.visionzip import VisionZip
from hiprune.methods.vispruner import VisPruner

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        HiPrune,
        HiPrunePP,
        Random,
        Uniform,
        Cls,
        VisPruner,
        Scope,
        DivPrune,
        VisionZip,
        CDPruner,
    )
}


def methods() -> tuple[str, ...]:
    """Names of the methods, "hiprune" first."""
    return tuple(METHODS)


def method_of(config: Any) -> Method:
    """A HiPruneConfig's method with its settings, for one patched model."""
    cls = METHODS[config.method]
    return cls.made({name: getattr(config, name) for name in cls.shared} | dict(config.settings))
