"""HiPruneConfig: the method's hyper-parameters, from Python or from HIPRUNE_* variables.

What a variable's text says is read by :mod:`hiprune.variables`; defaults are those of a model's
family, of :mod:`hiprune.families`.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hiprune.errors import HiPruneError
from hiprune.families import FAMILIES as FAMILIES  # names that are this module's as well
from hiprune.families import Family as Family
from hiprune.families import family_of
from hiprune.methods import METHODS, WITH_CLS
from hiprune.methods.hiprune import DEFAULT_ALPHA
from hiprune.methods.settings import as_python
from hiprune.neighbours import NEIGHBORHOODS, SHAPES
from hiprune.variables import (
    read_choice,
    read_float,
    read_int,
    read_own,
    read_tokens_or_share,
)

logger = logging.getLogger(__name__)


# What the fields that change the method take, its default first.
CHOICES: dict[str, tuple] = {
    "method": tuple(METHODS),
    "score": ("global", "cls"),
    "buffer": tuple(SHAPES),
    "neighborhood": NEIGHBORHOODS,
    "registers": (True, False),
}


@dataclass(frozen=True)
class HiPruneConfig:
    """How many tokens to keep and how they are shared out.

    Args:
        retention: N', the budget of one image. An int counts tokens: 1 is one token. A float in
            (0, 1] is a share of the image's tokens: 1.0 is all of them. None: the default of the
            model's family. (HIPRUNE_QWEN_RETENTION is a share however it is written: 1 is all.)
        alpha: share of the budget that goes to anchors plus buffers, in [0, 1].
        object_layer: l, the middle encoder layer that anchors are read from, counted from 1.
            None: the default of the model's family, at the same share of the tower's depth where
            that is not the paper's: 9 of 24 layers (CLIP), 16 of 32 (Qwen), rounded half up.
        method: a name out of :func:`hiprune.methods`: "hiprune"; "hiprune_pp", which reads the
            prompt's words as well; or, with the same budget and patch, our implementation of a
            method to compare with: "random" (drawn anew for every image), "uniform" (evenly
            spaced), "cls" (FasterVLM: most attended by CLS in the output layer), "vispruner",
            "scope", "divprune", "visionzip", "cdpruner" (their files say what they are). Those
            that look at CLS need a tower that has it.
        score: "global", attention from all tokens; or "cls", from CLS alone (paper, Table 6a).
        buffer: an anchor's neighbours: "cross" (4), "square" (8), "diagonal" (4), "row" (2),
            "column" (2) or "none" (paper, Tables 6c and 11).
        neighborhood: "flat", on the flat index, as the released code; or "grid", which ends at
            the rows' and columns' ends.
        registers: False: anchors and buffers fill the whole budget (paper, Table 6b), whatever
            alpha is. Without anchors and buffers is alpha = 0.
        seed: of "random".
        settings: of the method's own, name -> value: {"alpha": 0.5} of "scope". What is left out
            has the default of the method's class.

    Numbers may be numpy's; they are kept as Python's.

    Raises:
        HiPruneError: a value outside of these. What only the model can tell (how many tokens and
            layers it has) is checked by :func:`hiprune.apply`.
    """

    retention: int | float | None = None
    alpha: float = DEFAULT_ALPHA
    object_layer: int | None = None
    method: str = "hiprune"
    score: str = "global"
    buffer: str = "cross"
    neighborhood: str = "flat"
    registers: bool = True
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("retention", "alpha", "object_layer", "seed"):
            object.__setattr__(self, name, as_python(getattr(self, name)))
        own = {name: as_python(value) for name, value in dict(self.settings).items()}
        object.__setattr__(self, "settings", own)
        retention = self.retention
        if retention is not None and not _is_in(retention, 1, None) and not _is_share(retention):
            raise HiPruneError(
                f"retention={retention!r}: expected an int of at least 1 (tokens per image: 1 is "
                "one token) or a float in (0, 1] (share of the image's tokens: 1.0 is all)"
            )
        if type(self.alpha) not in (int, float) or not 0 <= self.alpha <= 1:
            raise HiPruneError(f"alpha={self.alpha!r}: expected a number from 0 to 1")
        if self.object_layer is not None and not _is_in(self.object_layer, 1, None):
            raise HiPruneError(
                f"object_layer={self.object_layer!r}: expected an integer from 1 to the number of "
                "encoder layers"
            )
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            # 1 == True, but 1 is none of the two.
            if not any(type(value) is type(choice) and value == choice for choice in choices):
                expected = ", ".join(map(repr, choices))
                raise HiPruneError(f"{name}={value!r}: expected one of {expected}")
        if not _is_in(self.seed, 0, 2**63 - 1):
            raise HiPruneError(f"seed={self.seed!r}: expected an integer from 0 to 2**63 - 1")
        for name in own:
            if name not in METHODS[self.method].own():
                expected = " or ".join(METHODS[self.method].own()) or "none"
                raise HiPruneError(
                    f"settings: {name}={own[name]!r} with method={self.method!r}: expected "
                    f"{expected}"
                )
        METHODS[self.method].made(own)  # raises for what a setting does not take
        foreign = _foreign(self.method, self.variant())
        if foreign:
            raise HiPruneError(
                f"{foreign}={getattr(self, foreign)!r} with method={self.method!r}: expected with "
                f"{_methods_with(foreign)} alone"
            )

    @classmethod
    def from_env(
        cls,
        family: str,
        environ: Mapping[str, str] | None = None,
        layers: int | None = None,
        tokens: int | None = None,
    ) -> HiPruneConfig:
        """Read the HIPRUNE_* variables, the family's defaults standing in for those not set.

        Args:
            family: a name in :data:`FAMILIES`, such as "llava" or "qwen2_5_vl".
            environ: where to read; the process environment, as it is now, unless given.
            layers, tokens: of the model, as of :meth:`resolve`; ``layers`` bounds l as well.

        Raises:
            HiPruneError: unknown family, or a variable that is set to anything not expected.
        """
        preset, env = family_of(family), os.environ if environ is None else environ
        name, most = preset.retention_variable, preset.max_retention
        if isinstance(preset.retention, int):
            retention = read_int(env, name, 1, most, "tokens per image")
        elif isinstance(most, int):
            retention = read_tokens_or_share(env, name, most)
        else:
            retention = read_float(env, name, above_zero=True)
        alpha = read_float(env, "HIPRUNE_ALPHA")
        last = preset.encoder_layers if layers is None else layers
        layer = read_int(env, "HIPRUNE_OBJECT_LAYER", 1, last, "the number of encoder layers")
        choices = {name: read_choice(env, _variable(name), CHOICES[name]) for name in CHOICES}
        changed = [name for name, value in choices.items() if value != CHOICES[name][0]]
        foreign = _foreign(choices["method"], changed)
        if foreign:
            name = _variable(foreign)
            raise HiPruneError(
                f"{name}={env[name]!r} with HIPRUNE_METHOD={env['HIPRUNE_METHOD']!r}: expected "
                f"with {_methods_with(foreign)} alone"
            )
        seed = read_int(env, "HIPRUNE_SEED", 0, 2**63 - 1, "a seed")
        alpha = DEFAULT_ALPHA if alpha is None else alpha
        own = read_own(env, METHODS[choices["method"]])
        config = cls(retention, alpha, layer, **choices, seed=seed or 0, settings=own)
        return config.resolve(family, layers, tokens)

    def resolve(
        self, family: str, layers: int | None = None, tokens: int | None = None
    ) -> HiPruneConfig:
        """The same configuration with the family's defaults in place of every None.

        A default that is not the family's number is told in the log, once.

        Args:
            layers: of the model's vision tower; the default l is as deep in it as the family's.
            tokens: the most of an image in this model; a default N' that is more than these is the
                family's share of them. None of either: as in the family's released models.
        """
        preset = family_of(family)
        retention, layer = self.retention, self.object_layer
        if layer is None:
            layer = preset.layer_of(layers)
            if layer != preset.object_layer:
                _say_once(
                    f"object_layer={layer} of this model's {layers} layers, unless set: as deep as "
                    f"{preset.object_layer} of {preset.encoder_layers}"
                )
        if retention is None:
            retention = preset.retention
            if tokens is not None and isinstance(retention, int) and tokens < retention:
                retention = max(1, round(retention / preset.max_retention * tokens))
                _say_once(
                    f"retention={retention} of this model's {tokens} tokens per image, unless set: "
                    f"the share of {preset.retention} of {preset.max_retention}"
                )
        return replace(self, retention=retention, object_layer=layer)

    def variables(self, family: str) -> dict[str, str]:
        """The other way round: variables that make this configuration, whatever else is set."""
        preset = family_of(family)
        found = {
            "HIPRUNE_ALPHA": repr(self.alpha),
            "HIPRUNE_OBJECT_LAYER": str(self.object_layer or preset.object_layer),
            "HIPRUNE_SEED": str(self.seed),
        }
        if self.retention is not None:
            found[preset.retention_variable] = str(self.retention)
        for name in CHOICES:
            value = getattr(self, name)
            found[_variable(name)] = str(int(value)) if isinstance(value, bool) else value
        method = METHODS[self.method]
        for name in method.own():
            found[method.variable(name)] = str(self.settings.get(name, getattr(method, name)))
        return found

    @property
    def needs(self) -> tuple[str, ...]:
        """What the method looks at, names out of :data:`hiprune.methods.NEEDS`."""
        return METHODS[self.method].needs

    @property
    def uses_cls(self) -> bool:
        """Is the CLS token looked at, which only some towers have?"""
        return self.score == "cls" or not WITH_CLS.isdisjoint(self.needs)

    def variant(self) -> dict[str, object]:
        """What differs from the paper's method, name -> value; empty for the method itself."""
        found = {
            name: getattr(self, name)
            for name, choices in CHOICES.items()
            if getattr(self, name) != choices[0]
        }
        method = METHODS[self.method]
        if "seed" in method.shared:
            found["seed"] = self.seed
        for name, value in self.settings.items():
            if value != getattr(method, name):
                found[f"{self.method}_{name}"] = value
        return found

    def budget(self, tokens: int) -> int:
        """N' for an image of ``tokens`` tokens: at least 1, at most all of them."""
        if self.retention is None:
            raise HiPruneError("retention=None: expected a configuration after resolve(family)")
        if isinstance(self.retention, int):
            return min(self.retention, tokens)
        return max(1, round(self.retention * tokens))


@functools.cache
def _say_once(text: str) -> None:
    logger.warning(text)


def _variable(field: str) -> str:
    return f"HIPRUNE_{field.upper()}"


def _is_in(value: Any, low: int, high: int | None) -> bool:
    return type(value) is int and low <= value and (high is None or value <= high)


def _is_share(value: Any) -> bool:
    return type(value) is float and 0 < value <= 1


def _foreign(method: str, changed: Mapping | list) -> str | None:
    """The first changed field that is no setting of the method."""
    fields = [name for name in CHOICES if name != "method" and name in changed]
    return next((name for name in fields if name not in METHODS[method].shared), None)


def _methods_with(setting: str) -> str:
    return " and ".join(repr(n) for n, each in METHODS.items() if setting in each.shared)
