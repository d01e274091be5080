"""HiPruneConfig: the method's hyper-parameters, from Python or from HIPRUNE_* variables."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hiprune.errors import HiPruneError
from hiprune.methods import METHODS
from hiprune.neighbours import NEIGHBORHOODS, SHAPES


@dataclass(frozen=True)
class Family:
    """What the paper fixes for one model family (paper, section "Experiments")."""

    name: str
    retention_variable: str
    retention: int | float  # the default budget: tokens (int) or share of the image's (float)
    max_retention: int | float
    object_layer: int  # l, counted from 1
    encoder_layers: int


FAMILIES = {
    family.name: family
    for family in (
        Family("llava", "HIPRUNE_RETENTION", 192, 576, object_layer=9, encoder_layers=24),
        Family("llava_next", "HIPRUNE_RETENTION", 640, 2880, object_layer=9, encoder_layers=24),
        Family(
            "qwen2_5_vl", "HIPRUNE_QWEN_RETENTION", 0.334, 1.0, object_layer=16, encoder_layers=32
        ),
    )
}
DEFAULT_ALPHA = 0.1
# What the fields that change the method accept, its default first.
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
        retention: N', the budget of one image. An int counts tokens; a float in (0, 1] is a share
            of the image's tokens. None: the default of the model's family.
        alpha: share of the budget that goes to anchors plus buffers, in [0, 1].
        object_layer: l, the middle encoder layer that anchors are read from, counted from 1.
            None: the default of the model's family.
        method: "hiprune"; or, with the same budget and patch, our implementation of a simple
            method to compare with: "random" (drawn anew for every image), "uniform" (evenly
            spaced), "cls" (most attended by CLS in the output layer, where there is a CLS).
        score: "global", attention from all tokens; or "cls", from CLS alone (paper, Table 6a).
        buffer: an anchor's neighbours: "cross" (4), "square" (8), "diagonal" (4), "row" (2),
            "column" (2) or "none" (paper, Tables 6c and 11).
        neighborhood: "flat", on the flat index, as the released code; or "grid", which ends at
            the rows' and columns' ends.
        registers: False: anchors and buffers fill the whole budget (paper, Table 6b), whatever
            alpha is. Without anchors and buffers is alpha = 0.
        seed: of "random".

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

    def __post_init__(self) -> None:
        if self.retention is not None:
            _check_retention(self.retention)
        if not _is_number(self.alpha) or not 0 <= self.alpha <= 1:
            raise HiPruneError(f"alpha={self.alpha!r}: accepted is a number from 0 to 1")
        if self.object_layer is not None and (
            not _is_int(self.object_layer) or self.object_layer < 1
        ):
            raise HiPruneError(
                f"object_layer={self.object_layer!r}: accepted is an integer from 1 to the number "
                "of encoder layers"
            )
        for name, accepted in CHOICES.items():
            value = getattr(self, name)
            # 1 == True, but 1 is none of the two.
            if not any(type(value) is type(choice) and value == choice for choice in accepted):
                raise HiPruneError(f"{name}={value!r}: accepted is one of {_listed(accepted)}")
        if not _is_int(self.seed) or not 0 <= self.seed < 2**63:
            raise HiPruneError(f"seed={self.seed!r}: accepted is an integer from 0 to 2**63 - 1")
        others = {n: v for n, v in self.variant().items() if n not in ("method", "seed")}
        if self.method != "hiprune" and others:
            name, value = next(iter(others.items()))
            raise HiPruneError(
                f"{name}={value!r} with method={self.method!r}: accepted with 'hiprune' alone"
            )

    @classmethod
    def from_env(cls, family: str, environ: Mapping[str, str] | None = None) -> HiPruneConfig:
        """Read the HIPRUNE_* variables, the family's defaults standing in for those not set.

        Args:
            family: "llava", "llava_next" or "qwen2_5_vl".
            environ: where to read; the process environment, as it is now, unless given.

        Raises:
            HiPruneError: unknown family, or a variable that is set to anything not accepted.
        """
        from hiprune.environment import read_config  # it makes configurations, so it comes later

        if family not in FAMILIES:
            raise HiPruneError(f"family={family!r}: accepted is one of {', '.join(FAMILIES)}")
        return cls(**read_config(FAMILIES[family], os.environ if environ is None else environ))

    def resolve(self, family: str) -> HiPruneConfig:
        """The same configuration with the family's defaults in place of every None."""
        preset = FAMILIES[family]
        return replace(
            self,
            retention=preset.retention if self.retention is None else self.retention,
            object_layer=preset.object_layer if self.object_layer is None else self.object_layer,
        )

    @property
    def needs(self) -> tuple[str, ...]:
        """What the method looks at, names out of :data:`hiprune.methods.NEEDS`."""
        return METHODS[self.method].needs

    @property
    def uses_cls(self) -> bool:
        """Are scores read off the CLS token's attention alone, which only some towers have?"""
        return "cls" in (self.method, self.score)

    def variant(self) -> dict[str, object]:
        """What differs from the paper's method, name -> value; empty for the method itself."""
        found = {
            name: getattr(self, name)
            for name, accepted in CHOICES.items()
            if getattr(self, name) != accepted[0]
        }
        return {**found, "seed": self.seed} if self.method == "random" else found

    def budget(self, tokens: int) -> int:
        """N' for an image of ``tokens`` tokens: at least 1, at most all of them."""
        if self.retention is None:
            raise HiPruneError("retention=None: resolve the configuration for a family first")
        if isinstance(self.retention, int):
            return min(self.retention, tokens)
        return max(1, round(self.retention * tokens))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(value)


def _check_retention(value: object) -> None:
    if _is_int(value) and value >= 1:
        return
    if isinstance(value, float) and 0 < value <= 1:
        return
    raise HiPruneError(
        f"retention={value!r}: accepted is an int of at least 1 (tokens per image) or a float in "
        "(0, 1] (share of the image's tokens)"
    )


def _listed(accepted: tuple) -> str:
    return ", ".join(repr(choice) for choice in accepted)
