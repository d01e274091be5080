"""lmms-eval's model ``qwen2_5_vl_hiprune``: asks as the stock (simple) ``qwen2_5_vl`` does."""

from __future__ import annotations

from typing import Any

from lmms_eval.models.model_utils.media_encoder import encode_image_to_data_url
from PIL import Image
from qwen_vl_utils import process_vision_info

from hiprune.lmms.hf import HiPruneHf


class Qwen25VLHiPrune(HiPruneHf):
    """The arguments of ``hiprune_hf``, with lmms-eval's defaults of ``qwen2_5_vl``."""

    families = ("qwen2_5_vl",)
    is_simple = True
    max_new_tokens = 32768

    def __init__(
        self,
        pretrained: str = "Qwen/Qwen2.5-VL-3B-Instruct",
        min_pixels: int = 256 * 28 * 28,
        max_pixels: int = 1605632,
        system_prompt: str = "You are a helpful assistant.",
        **arguments: Any,
    ) -> None:
        super().__init__(
            pretrained,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            system_prompt=system_prompt,
            **arguments,
        )

    def _ends(self) -> dict[str, Any]:
        tokenizer = self.tokenizer
        return {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}

    def _text(self, context: str, visuals: list) -> str:
        """The conversation up to the answer: system prompt, images, question."""
        content = [{"type": "image"} for _ in visuals]
        content.append({"type": "text", "text": context.replace("<image>", "")})
        return super()._text([{"role": "user", "content": content}], visuals)

    def _image(self, image: Image.Image) -> Image.Image:
        # As the stock class: JPEG at quality 85, of which the scores depend a little.
        url = encode_image_to_data_url(
            image, image_format="JPEG", mime_type="image/jpeg", convert_rgb=True, quality=85
        )
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        part = {"type": "image", "image": url, **limits}
        (found,), _ = process_vision_info([{"role": "user", "content": [part]}])
        return found
