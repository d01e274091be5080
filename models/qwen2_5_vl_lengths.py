"""Lengths in a generation's settings, which count the unpruned prompt."""

from __future__ import annotations

from hiprune.errors import HiPruneError


def generation_lengths(settings: dict, defaults: object, prompt: int) -> dict:
    """`max_length` and `min_length` count the unpruned prompt: turn them into new tokens.

    Args:
        settings: keyword arguments of generate.
        defaults: the generation configuration that they are laid over.
        prompt: T, tokens of the unpruned prompt.

    Returns:
        The settings with `max_new_tokens` and `min_new_tokens` in their place.

    Raises:
        HiPruneError: a max_length that leaves no token to generate.
    """
    settings = dict(settings)
    for bound in ("max", "min"):
        length, new = f"{bound}_length", f"{bound}_new_tokens"
        found = settings.pop(length, None)
        if found is None:
            found = getattr(defaults, length, None)
        given = settings.get(new)
        if given is None:
            given = getattr(defaults, new, None)
        if given is not None or not found:
            continue
        if bound == "max" and found <= prompt:
            raise HiPruneError(f"max_length={found}: accepted is above the prompt's {prompt}")
        settings[new] = max(found - prompt, 0)
    return settings
