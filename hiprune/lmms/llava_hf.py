"""lmms-eval's model ``llava_hf_hiprune``: asks as the stock (simple) ``llava_hf`` does."""

from __future__ import annotations

from typing import Any

from lmms_eval.models.simple.llava_hf import DEFAULT_IMAGE_TOKEN, VICUNA_CHAT_TEMPLATE

from hiprune.lmms.hf import HiPruneHf


class LlavaHfHiPrune(HiPruneHf):
    """The arguments of ``hiprune_hf``, with lmms-eval's defaults of ``llava_hf``.

    Args:
        pad: LLaVA-1.5 alone: pad an image to a square with the mean colour, as the original does
            and the paper's numbers are measured; False: crop its centre, as transformers does.
    """

    families = ("llava", "llava_next")
    text = "openai/clip-vit-large-patch14-336"  # whose tower all of LLaVA's checkpoints have
    is_simple = True

    def __init__(
        self,
        pretrained: str = "llava-hf/llava-1.5-7b-hf",
        dtype: str = "float16",
        pad: bool = True,
        **arguments: Any,
    ) -> None:
        super().__init__(pretrained, dtype=dtype, pad=pad, **arguments)

    def _template(self) -> str:
        return self.tokenizer.chat_template or VICUNA_CHAT_TEMPLATE

    def _pads(self, pad: bool) -> bool:
        return pad and self._family == "llava"

    def _ends(self) -> dict[str, Any]:
        end = self.tokenizer.eos_token_id
        return {"eos_token_id": end, "pad_token_id": end}

    def _text(self, context: str, visuals: list) -> str:
        """The conversation up to the answer; image placeholders go first unless it has its own."""
        question = context
        if visuals and DEFAULT_IMAGE_TOKEN not in context:
            context = " ".join([DEFAULT_IMAGE_TOKEN] * len(visuals)) + "\n" + context
        prompt = self._render(context)
        if question not in prompt:  # a template for content in parts, which drops plain text
            parts = [{"type": "image"} for _ in visuals]
            text = question.replace(DEFAULT_IMAGE_TOKEN, "").strip()
            prompt = self._render([*parts, {"type": "text", "text": text}])
        return prompt

    def _render(self, content: str | list[dict]) -> str:
        messages = [{"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=True
        )

    def _finished(self, answer: str, until: str | list[str]) -> str:
        return answer
