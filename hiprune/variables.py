"""HIPRUNE_* variables: the text of each as a number, a share, a choice or a method's setting.

None where a variable is not set, unless said; an error names it, what it is set to and what is
expected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hiprune.errors import HiPruneError
from hiprune.methods import Method

_FLAGS = {"1": True, "0": False}


def read_choice(env: Mapping[str, str], name: str, choices: tuple) -> Any:
    """One of ``choices``, the first where it is not set; True and False are written 1 and 0."""
    text = env.get(name)
    if text is None:
        return choices[0]
    expected = _FLAGS if choices == (True, False) else {choice: choice for choice in choices}
    if text not in expected:
        raise HiPruneError(f"{name}={text!r}: expected one of {', '.join(expected)}")
    return expected[text]


def read_own(env: Mapping[str, str], method: type[Method]) -> dict[str, Any]:
    """A method's own settings, of those of its variables that are set."""
    found = {}
    for name, setting in method.own().items():
        variable = method.variable(name)
        if variable not in env:
            continue
        text = env[variable]
        try:
            found[name] = setting.read(text)
        except (ValueError, KeyError):
            found[name] = None
        if not setting.fits(found[name]):
            raise HiPruneError(f"{variable}={text!r}: expected {setting.expected}")
    return found


def _number(text: str, kind: type) -> Any:
    """None unless it is one. Python reads "1_000" and other scripts' digits too: a slip, here."""
    try:
        return kind(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def read_int(env: Mapping[str, str], name: str, low: int, top: int, of_what: str) -> int | None:
    text = env.get(name)
    if text is None:
        return None
    value = _number(text, int)
    if value is None or not low <= value <= top:
        raise HiPruneError(f"{name}={text!r}: expected an integer from {low} to {top} ({of_what})")
    return value


def read_tokens_or_share(env: Mapping[str, str], name: str, most: int) -> int | float | None:
    text = env.get(name)
    if text is None:
        return None
    tokens, share = _number(text, int), _number(text, float)
    if tokens is None and share is not None and 0 < share <= 1:
        return share
    if tokens is None or not 1 <= tokens <= most:
        raise HiPruneError(
            f"{name}={text!r}: expected an integer from 1 to {most} (tokens per image), or a "
            "number in (0, 1] with a decimal point (share of the image's tokens: 1.0 is all)"
        )
    return tokens


def read_float(env: Mapping[str, str], name: str, above_zero: bool = False) -> float | None:
    text = env.get(name)
    if text is None:
        return None
    value = _number(text, float)
    if value is None or not 0 <= value <= 1 or (above_zero and value == 0):  # NaN: neither
        share = "in (0, 1] (share of the image's tokens: 1 is all)"
        expected = share if above_zero else "from 0 to 1"
        raise HiPruneError(f"{name}={text!r}: expected a number {expected}")
    return value
