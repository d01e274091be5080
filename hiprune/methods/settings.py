"""A method's own settings: fields of its dataclass that know what they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What a setting takes.

    Attributes:
        expected: in words.
        fits: is this a value of it?
        read: text of a variable -> its value; a ValueError or KeyError where it is none.
        variable: its variable's name, where that does not follow from the method's.
    """

    expected: str
    fits: Callable[[Any], bool]
    read: Callable[[str], Any]
    variable: str = ""


def number(default: float, low: float, high: float, variable: str = "") -> Any:
    """A number from ``low`` to ``high``."""

    def fits(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    expected = f"a number from {low:g} to {high:g}"
    return _field(default, Setting(expected, fits, lambda text: float(_plain(text)), variable))


def count(default: int, what: str, high: int | None = None) -> Any:
    """A whole number from 0."""

    def fits(value: Any) -> bool:
        return type(value) is int and value >= 0 and (high is None or value <= high)

    expected = f"an integer from 0 ({what})"
    return _field(default, Setting(expected, fits, lambda text: int(_plain(text))))


def flag(default: bool) -> Any:
    """True or False."""
    known = {"1": True, "0": False}
    expected = "True or False"
    return _field(default, Setting(expected, lambda value: type(value) is bool, known.__getitem__))


def choice(*choices: str) -> Any:
    """One of several words, the first unless set."""
    expected = f"one of {', '.join(map(repr, choices))}"
    known = {each: each for each in choices}
    return _field(
        choices[0],
        Setting(expected, lambda value: value in choices, known.__getitem__),
    )


def as_python(value: Any) -> Any:
    """numpy's numbers as Python's; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _plain(text: str) -> str:
    """Python reads "1_000" and other scripts' digits too: a slip, here."""
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return text


def _field(default: Any, setting: Setting) -> Any:
    return field(default=default, metadata={"setting": setting})
