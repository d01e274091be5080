"""choose_tokens: any method without a model, out of tensors."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from torch import Tensor

from hiprune.errors import HiPruneError
from hiprune.methods.base import NEEDS, Images
from hiprune.methods.registry import METHODS
from hiprune.selection import TokenSelection


def choose_tokens(name: str, *, budget: int, columns: int, **given: Any) -> TokenSelection:
    """The N' tokens that a method keeps of each of B images.

    LLaVA-NeXT: the views of an image are the B, with the budget of a view. Scores are computed in
    float32, whatever the dtype given. Equal scores: the lower index wins.

    What an image keeps does not depend on the others of its batch, with two exceptions: "random",
    which draws for one after the other; and "cdpruner", whose relevance runs from 0 to 1 over all B
    together, as in the released code, where these are the views of one image. Give it images of
    different pictures one by one, as a patched model does.

    Args:
        name: out of :func:`hiprune.methods`.
        budget: N', tokens to keep; N or more keeps all. VisionZip counts CLS: 1 + N keeps all.
        columns: c, tokens per row of the image's grid.
        given: what the method needs, by name (:data:`hiprune.methods.NEEDS` has the shapes; what it
            does not need is not looked at); and its own settings by name, as its class has them,
            each with a default.

    Returns:
        The selection, on the device of what was given. ``merged`` holds what a merging method makes
        (VisionZip: CLS, then the contextual tokens); N' counts these.

    Raises:
        HiPruneError: another name, needed input that is missing or of another shape, or a setting
            that the method does not have or take.
    """
    if name not in METHODS:
        raise HiPruneError(f"name={name!r}: expected one of {', '.join(METHODS)}")
    for what, value in (("budget", budget), ("columns", columns)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise HiPruneError(f"{what}={value!r}: expected an integer of at least 1")
    inputs = {need: given.pop(need) for need in NEEDS if need in given}
    method = METHODS[name].made(given)
    if "image_embeds" in method.needs and inputs.get("image_embeds") is None:
        inputs["image_embeds"] = inputs.get("projected")
    seen = {n: x for n, x in inputs.items() if x is not None and n in (method.needs or NEEDS)}
    sizes = _sizes(seen)
    if "N" not in sizes:
        raise HiPruneError(
            f"{name!r} without an input: expected {NEEDS[next(iter(method.needs or NEEDS))]}, for "
            "the number of images and tokens"
        )
    device = next(value for n, value in seen.items() if n != "text_embeds").device
    budget = min(int(budget), sizes["N"] + method.merges)  # a merging method counts CLS
    return method(Images(sizes["B"], sizes["N"], int(columns), budget, device), **seen)


def _sizes(inputs: dict[str, Tensor]) -> dict[str, int]:
    """What each letter of the inputs' shapes stands for."""
    found: dict[str, int] = {}
    for name, value in inputs.items():
        shape = NEEDS[name].partition(")")[0].strip("(").split(", ")
        ok = isinstance(value, Tensor) and value.ndim == len(shape) and 0 not in value.shape
        if ok:
            for letter, size in zip(shape, value.shape, strict=True):
                extra = letter.startswith("1+")
                known = found.setdefault(letter.removeprefix("1+"), size - extra)
                ok = ok and size == known + extra
        if not ok:
            tensor = isinstance(value, Tensor)
            what = tuple(value.shape) if tensor else f"{type(value).__name__}, no tensor"
            letters = ", ".join(f"{letter} = {size}" for letter, size in found.items())
            raise HiPruneError(f"{name}: {what}; expected {NEEDS[name]}, with {letters or 'N > 0'}")
    return found
