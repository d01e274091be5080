"""Numbers as command lines and variables spell them; errors name the argument or variable."""

from __future__ import annotations

import re

from hiprune import HiPruneError

MOST = 10**9 - 1


def number(text: str) -> int | float | None:
    """An int without a point, a float with one; None for anything but digits and a point."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    return float(text) if re.fullmatch(r"[0-9]*\.[0-9]+|[0-9]+\.", text) else None


def integer(text: str, least: int, most: int = MOST, name: str = "") -> int:
    """An integer from ``least`` to ``most``.

    Args:
        name: of the argument or variable; "" where the caller's message begins with it.

    Raises:
        HiPruneError: anything else.
    """
    value = number(text)
    if isinstance(value, int) and least <= value <= most:
        return value
    expected = f"of at least {least}" if most == MOST else f"from {least} to {most}"
    raise HiPruneError(f"{_found(text, name)}: expected an integer {expected}")


def image_size(text: str, least: int, most: int, name: str = "") -> tuple[int, int]:
    """WxH -> (width, height), each from ``least`` to ``most`` pixels; raises as :func:`integer`."""
    match = re.fullmatch(r"([0-9]{1,6})[xX]([0-9]{1,6})", text)
    sides = tuple(map(int, match.groups())) if match else (least - 1,)
    if not all(least <= side <= most for side in sides):
        raise HiPruneError(
            f"{_found(text, name)}: expected WxH, width and height in pixels, each an integer from "
            f"{least} to {most}"
        )
    return sides


def _found(text: str, name: str) -> str:
    return f"{name}={text!r}" if name else repr(text)
