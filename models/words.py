"""The prompt's words, for methods that read them: where they stand, and what stands for them.

One text a prompt: what the user says, without system prompt and template; the images of a prompt
share it. It is read before the tower runs, and lies with the pass (:func:`reading`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from hiprune.errors import HiPruneError

# (M, E) of each image that the tower is about to see.
_WORDS: ContextVar[Sequence[Tensor] | None] = ContextVar("hiprune_words", default=None)
HEADER = 3  # tokens that open a turn: <|im_start|>, the role, a new line


@contextmanager
def reading(words: Sequence[Tensor] | None) -> Iterator[None]:
    """For one run of the tower: the text of each image, (M, E)."""
    token = _WORDS.set(words)
    try:
        yield
    finally:
        _WORDS.reset(token)


def words_of(image: int, method: str) -> Tensor:
    """(M, E) of an image of this run, by its number.

    Raises:
        HiPruneError: the tower runs without a prompt.
    """
    words = _WORDS.get()
    if words is None:
        raise HiPruneError(
            f"text=None: method {method!r} reads the prompt's words; expected a prompt with the "
            "images, or encode_images(..., text=), (M, E) for all images or a list of one each"
        )
    if image >= len(words):
        raise HiPruneError(f"text: of {len(words)} images; expected one each, more than {image}")
    return words[image]


def given(text: Any, images: int, source: Any) -> list[Tensor] | None:
    """What encode_images was given as ``text`` -> (M, E) of each image."""
    if text is None:
        return None
    several = [text] * images if isinstance(text, (Tensor, str)) else list(text)
    return [each if isinstance(each, Tensor) else source.embed(each) for each in several]


class PromptEmbeds:
    """Of a model without a text encoder: the mean of its own embeddings of the user's words."""

    def of_prompts(self, model: Any, ids: Tensor, mask: Tensor | None, visual: Tensor) -> list:
        """(B, T) ids, and which are visual, bool -> (1, D) of each prompt, float32."""
        config = model.config
        ends = getattr(model.generation_config, "eos_token_id", None)
        ends = ends if isinstance(ends, (list, tuple)) else [ends]
        around = [getattr(config, f"vision_{name}_token_id", None) for name in ("start", "end")]
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device) != 0
        said = user_words(ids, real, visual, _among(ids, ends)) & ~_among(ids, around)
        weight = said.unsqueeze(1).float()  # (B, 1, T)
        embeds = model.get_input_embeddings()(torch.where(said, ids, ids[:, :1])).float()
        mean = weight.to(embeds.device) @ embeds.detach()  # (B, 1, D)
        return list(mean / weight.sum(dim=2, keepdim=True).clamp(min=1).to(embeds.device))

    def embed(self, words: str) -> Tensor:
        raise HiPruneError(
            f"text={words!r}: this model's words are embeddings of its own; expected (M, D) "
            "embeddings, or a prompt with the images"
        )


def user_words(ids: Tensor, real: Tensor, visual: Tensor, ends: Tensor) -> Tensor:
    """(B, T) ids -> which of them the user says, bool, from the turns of the chat template alone.

    A turn opens with a prompt's first id (<|im_start|>), its role and a new line, and ends with an
    end token. The user's turns are those of the role that shows the first image. A prompt whose
    first id does not come again has no template: then all of its text is the user's.

    Args:
        real, visual, ends: (B, T) bool, what is no padding, an image's token, an end token.
    """
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    first = real.int().argmax(dim=1, keepdim=True)  # (B, 1)
    opens = (ids == ids.gather(1, first)) & real & ~visual
    in_turns = opens.sum(dim=1, keepdim=True) > 1
    start = torch.where(opens, places, 0).cummax(dim=1).values  # where each position's turn opens
    role = ids.gather(1, (start + 1).clamp(max=ids.shape[1] - 1))  # of each position's turn
    users = role == role.gather(1, visual.int().argmax(dim=1, keepdim=True))
    end = torch.where(ends, places, -1).cummax(dim=1).values  # the last end token so far
    text = real & ~visual
    return text & (~in_turns | (users & (places >= start + HEADER) & (end < start)))


def _among(ids: Tensor, several: Sequence[int | None]) -> Tensor:
    found = torch.zeros_like(ids, dtype=torch.bool)
    for each in several:
        if each is not None:
            found |= ids == each
    return found
