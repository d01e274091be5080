"""HiPruneConfig: the method's hyper-parameters, from Python or from HIPRUNE_* variables."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from hiprune.errors import HiPruneError


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


@dataclass(frozen=True)
class HiPruneConfig:
    """How many tokens to keep and how they are shared out.

    Args:
        retention: N', the budget of one image. An int counts tokens; a float in (0, 1] is a share
            of the image's tokens. None: the default of the model's family.
        alpha: share of the budget that goes to anchors plus buffers, in [0, 1].
        object_layer: l, the middle encoder layer that anchors are read from, counted from 1.
            None: the default of the model's family.

    Raises:
        HiPruneError: a value outside of these. What only the model can tell (how many tokens and
            layers it has) is checked by :func:`hiprune.apply`.
    """

    retention: int | float | None = None
    alpha: float = DEFAULT_ALPHA
    object_layer: int | None = None

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

    @classmethod
    def from_env(cls, family: str, environ: Mapping[str, str] | None = None) -> HiPruneConfig:
        """Read the HIPRUNE_* variables, the family's defaults standing in for those not set.

        Args:
            family: "llava", "llava_next" or "qwen2_5_vl".
            environ: where to read; the process environment, as it is now, unless given.

        Raises:
            HiPruneError: unknown family, or a variable that is set to anything not accepted.
        """
        if family not in FAMILIES:
            raise HiPruneError(f"family={family!r}: accepted is one of {', '.join(FAMILIES)}")
        preset = FAMILIES[family]
        env = os.environ if environ is None else environ
        if isinstance(preset.retention, int):
            retention = _read_int(
                env,
                preset.retention_variable,
                preset.retention,
                int(preset.max_retention),
                "tokens per image",
            )
        else:
            retention = _read_float(
                env, preset.retention_variable, preset.retention, exclude_zero=True
            )
        return cls(
            retention=retention,
            alpha=_read_float(env, "HIPRUNE_ALPHA", DEFAULT_ALPHA),
            object_layer=_read_int(
                env,
                "HIPRUNE_OBJECT_LAYER",
                preset.object_layer,
                preset.encoder_layers,
                "the number of encoder layers",
            ),
        )

    def resolve(self, family: str) -> HiPruneConfig:
        """The same configuration with the family's defaults in place of every None."""
        preset = FAMILIES[family]
        return HiPruneConfig(
            retention=preset.retention if self.retention is None else self.retention,
            alpha=self.alpha,
            object_layer=preset.object_layer if self.object_layer is None else self.object_layer,
        )

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


def _is_plain(text: str) -> bool:
    """Python also reads "1_000" and the digits of other scripts; a setting that does is a slip."""
    return text.isascii() and "_" not in text


def _read_int(env: Mapping[str, str], name: str, default: int, top: int, of_what: str) -> int:
    text = env.get(name)
    if text is None:
        return default
    try:
        value = int(text) if _is_plain(text) else 0
    except ValueError:
        value = 0
    if not 1 <= value <= top:
        raise HiPruneError(f"{name}={text!r}: accepted is an integer from 1 to {top} ({of_what})")
    return value


def _read_float(
    env: Mapping[str, str], name: str, default: float, exclude_zero: bool = False
) -> float:
    text = env.get(name)
    if text is None:
        return default
    try:
        value = float(text) if _is_plain(text) else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1 or (exclude_zero and value == 0):  # NaN fails the first comparison
        accepted = "a number in (0, 1]" if exclude_zero else "a number from 0 to 1"
        raise HiPruneError(f"{name}={text!r}: accepted is {accepted}")
    return value
