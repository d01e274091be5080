"""HIPRUNE_* variables -> the fields of a configuration, or an error that names the variable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hiprune.config import CHOICES, DEFAULT_ALPHA, Family, HiPruneConfig
from hiprune.errors import HiPruneError

_FLAGS = {"1": True, "0": False}


def read_config(family: Family, env: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of HiPruneConfig; the family's defaults stand in for what is not set."""
    if isinstance(family.retention, int):
        most = int(family.max_retention)
        retention = _read_int(
            env, family.retention_variable, family.retention, 1, most, "tokens per image"
        )
    else:
        retention = _read_float(env, family.retention_variable, family.retention, exclude_zero=True)
    choices = {name: _read_choice(env, name) for name in CHOICES}
    changed = [name for name, value in choices.items() if value != CHOICES[name][0]]
    if "method" in changed and len(changed) > 1:
        name = f"HIPRUNE_{next(n for n in changed if n != 'method').upper()}"
        raise HiPruneError(
            f"{name}={env[name]!r} with HIPRUNE_METHOD={env['HIPRUNE_METHOD']!r}: accepted with "
            "'hiprune' alone"
        )
    return {
        "retention": retention,
        "alpha": _read_float(env, "HIPRUNE_ALPHA", DEFAULT_ALPHA),
        "object_layer": _read_int(
            env,
            "HIPRUNE_OBJECT_LAYER",
            family.object_layer,
            1,
            family.encoder_layers,
            "the number of encoder layers",
        ),
        **choices,
        "seed": _read_int(env, "HIPRUNE_SEED", 0, 0, 2**63 - 1, "a seed"),
    }


def variables(config: HiPruneConfig, family: Family) -> dict[str, str]:
    """The other way round: the variables that make this configuration, whatever else is set."""
    found = {
        "HIPRUNE_ALPHA": repr(config.alpha),
        "HIPRUNE_OBJECT_LAYER": str(config.object_layer or family.object_layer),
        "HIPRUNE_SEED": str(config.seed),
    }
    if config.retention is not None:
        found[family.retention_variable] = str(config.retention)
    for name in CHOICES:
        value = getattr(config, name)
        found[f"HIPRUNE_{name.upper()}"] = str(int(value)) if isinstance(value, bool) else value
    return found


def _read_choice(env: Mapping[str, str], field: str) -> Any:
    name, choices = f"HIPRUNE_{field.upper()}", CHOICES[field]
    text = env.get(name)
    if text is None:
        return choices[0]
    accepted = _FLAGS if choices == (True, False) else {choice: choice for choice in choices}
    if text not in accepted:
        raise HiPruneError(f"{name}={text!r}: accepted is one of {', '.join(accepted)}")
    return accepted[text]


def _is_plain(text: str) -> bool:
    """Python also reads "1_000" and the digits of other scripts; a setting that does is a slip."""
    return text.isascii() and "_" not in text


def _read_int(
    env: Mapping[str, str], name: str, default: int, low: int, top: int, of_what: str
) -> int:
    text = env.get(name)
    if text is None:
        return default
    try:
        value = int(text) if _is_plain(text) else low - 1
    except ValueError:
        value = low - 1
    if not low <= value <= top:
        raise HiPruneError(
            f"{name}={text!r}: accepted is an integer from {low} to {top} ({of_what})"
        )
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
