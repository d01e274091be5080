"""ClipText: the text encoder that a LLaVA's CLIP tower was trained with.

For methods that compare an image's tokens with the user's words (HiPrune++, CDPruner). A LLaVA
checkpoint has the tower alone, without CLIP's text encoder and without the two projections into the
space that both share: they come from the tower's own checkpoint.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from hiprune.errors import HiPruneError

# What a user says, between the marks of the templates that LLaVA's models are asked in.
_TURNS = (
    re.compile(r"<\|im_start\|>\s*user\s(.*?)(?:<\|im_end\|>|$)", re.DOTALL),
    re.compile(r"\[INST\](.*?)(?:\[/INST\]|$)", re.DOTALL),
    re.compile(r"USER:(.*?)(?:ASSISTANT:|</s>|$)", re.DOTALL),
    re.compile(r"### Human:(.*?)(?:###|$)", re.DOTALL),
)
_MARKS = re.compile(r"<s>|</s>|<unk>|<pad>|<image>|<<SYS>>.*?<</SYS>>", re.DOTALL)


class ClipText:
    """
    Args:
        clip: transformers' CLIPModel of the tower's checkpoint, with its ``text_model``,
            ``text_projection`` and ``visual_projection``. It is used as it is, in float32.
        tokenizer: that model's.
        prompts: the language model's tokenizer, which reads the prompt's ids; None: it is loaded
            from where the language model came from when it is first needed.
    """

    def __init__(self, clip: Any, tokenizer: Any, prompts: Any = None) -> None:
        for name in ("text_model", "text_projection", "visual_projection"):
            if not hasattr(clip, name):
                raise HiPruneError(
                    f"clip: a {type(clip).__name__} without {name}; expected transformers' "
                    "CLIPModel of the vision tower's checkpoint"
                )
        self.clip = clip.float().eval().requires_grad_(False)
        self.tokenizer, self.prompts = tokenizer, prompts

    @classmethod
    def found(cls, text: Any, checkpoint: str | None = None) -> ClipText:
        """Out of what ``apply(..., text=)`` was given.

        Args:
            text: a ClipText; or the path or name of a CLIP checkpoint; or None.
            checkpoint: the tower's own, where the model tells it.
        """
        if isinstance(text, cls):
            return text
        text = checkpoint if text is None else text
        if not isinstance(text, str):
            raise HiPruneError(
                f"text={text!r}: this method reads the prompt's words, and the model does not tell "
                "its vision tower's checkpoint; expected its path or name, such as "
                "'openai/clip-vit-large-patch14-336', or hiprune.ClipText(clip, tokenizer)"
            )
        from transformers import AutoTokenizer, CLIPModel

        try:
            return cls(CLIPModel.from_pretrained(text), AutoTokenizer.from_pretrained(text))
        except (OSError, ValueError) as error:
            raise HiPruneError(
                f"text={text!r}: no CLIP was loaded from there ({str(error).splitlines()[0]}); "
                "expected a checkpoint of CLIP, or hiprune.ClipText(clip, tokenizer)"
            ) from error

    def fits(self, vision: Any) -> ClipText:
        """Itself, for a tower (a CLIPVisionModel) of its width."""
        width = self.clip.visual_projection.in_features
        if width != vision.config.hidden_size:
            raise HiPruneError(
                f"text: CLIP with image features of {width}; expected that of the model's vision "
                f"tower, {vision.config.hidden_size}"
            )
        return self

    def of_prompts(self, model: Any, ids: Tensor, mask: Tensor | None, visual: Tensor) -> list:
        """(B, T) ids, and which are visual, bool -> (M, E) of each prompt."""
        if self.prompts is None:
            self.prompts = _tokenizer_of(model)
        text = ~visual if mask is None else ~visual & (mask.to(visual.device) != 0)
        rows = [row[there].tolist() for row, there in zip(ids, text, strict=True)]
        return [self.embed(user_words(self.prompts.decode(row))) for row in rows]

    @torch.no_grad()
    def embed(self, words: str) -> Tensor:
        """Words -> (M, E) float32: cut into segments as long as the text encoder takes."""
        device, most = self._device(), self.clip.config.text_config.max_position_embeddings
        ids = torch.tensor([self.tokenizer(words, truncation=False)["input_ids"]])  # (1, L)
        real = torch.nn.functional.pad(torch.ones_like(ids), (0, -ids.shape[1] % most))
        ids = torch.nn.functional.pad(ids, (0, -ids.shape[1] % most))
        ids, real = (x.view(-1, most).to(device) for x in (ids, real))  # (M, 77)
        hidden = self.clip.text_model(input_ids=ids, attention_mask=real)[0]  # (M, 77, C_t)
        # Pooled at the end mark; a segment that was cut before it, at its greatest id.
        ends = (ids == self.tokenizer.eos_token_id) & (real > 0)
        place = torch.where(ends.any(dim=1), ends.int().argmax(dim=1), ids.argmax(dim=1))
        pooled = hidden[torch.arange(len(hidden), device=device), place]
        return self.clip.text_projection(pooled)  # (M, E)

    @torch.no_grad()
    def image_embeds(self, layer_norm: Any, features: Tensor) -> Tensor:
        """(B, N, C_v) of the output layer, and the tower's post_layernorm -> (B, N, E)."""
        normed = layer_norm(features)
        return self.clip.visual_projection(normed.float().to(self._device())).to(normed.device)

    def _device(self) -> torch.device:
        return self.clip.visual_projection.weight.device


def user_words(prompt: str) -> str:
    """What the user says in a prompt, without system prompt and template; all of it without one."""
    for turn in _TURNS:
        found = turn.findall(prompt)
        if found:
            prompt = " ".join(found)
            break
    return " ".join(_MARKS.sub(" ", prompt).split())


def _tokenizer_of(model: Any) -> Any:
    from transformers import AutoTokenizer

    name = getattr(model.config, "_name_or_path", "") or getattr(model, "name_or_path", "")
    try:
        if not name:
            raise OSError("the model does not tell where it came from")
        return AutoTokenizer.from_pretrained(name, use_fast=False)
    except (OSError, ValueError) as error:
        raise HiPruneError(
            f"text: no tokenizer of the language model at {name!r} to read the prompt's words "
            f"with ({str(error).splitlines()[0]}); expected hiprune.ClipText(clip, tokenizer, "
            "prompts=the language model's tokenizer)"
        ) from error
