"""transformers' Video-LLaVA, 5.17 to 5.x: a tower for images and one for videos.

Images as LLaVA-1.5's. Each frame of a video is pruned as an image is. transformers' videos keep
each frame's CLS token: it stays, in front of its frame's kept tokens, and is not counted in N'.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hiprune.models.clip import ClipTower
from hiprune.models.clip_run import run_tower
from hiprune.models.llava_hf import LlavaHf, clip_of
from hiprune.models.prompt import ImageSpan
from hiprune.models.registry import register
from hiprune.models.tokens import Tokens
from hiprune.models.views import tower_size
from hiprune.models.visuals import Encoded, Kind
from torch import Tensor

from hiprune.config import Family, HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle

# Per image or frame, a third by default. The paper prints neither l nor alpha of Video-LLaVA: l is
# as deep as that of CLIP in its other models.
_FAMILY = Family("video_llava", "HIPRUNE_RETENTION", 85, 256, object_layer=9, encoder_layers=24)


# The prompt that transformers' documentation asks with.
_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% elif message['role'] == 'assistant' %}ASSISTANT: "
    "{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ '<' + part['type'] + '>\n' }}{% endif %}"
    "{% endfor %}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass
class Towers:
    """What is known of both."""

    image: ClipTower
    video: ClipTower
    text: Any = None
    reads_text = False  # methods that do need more than attention


@register("transformers", "VideoLlavaForConditionalGeneration", families=(_FAMILY,))
class VideoLlava(LlavaHf):
    video_frames = 8
    chat_template = _TEMPLATE

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (
            Kind(1, "image", _pixels_name(), "", "image_token_id"),
            Kind(2, "video", "pixel_values_videos", "", "video_token_id"),
        )

    def family(self, model: Any) -> str:
        return "video_llava"

    def size(self, model: Any) -> dict[str, int]:
        return tower_size(clip_of(model, "image_tower"), 1)

    def tower(self, model: Any, config: HiPruneConfig) -> Towers:
        layer = model.config.vision_feature_layer
        images, videos = (clip_of(model, name) for name in ("image_tower", "video_tower"))
        image = ClipTower(images, layer, config, 1)
        frame = Tokens(image.tokens.patches, keeps_extra=True)
        return Towers(image, ClipTower(videos, layer, config, None, frame))

    def patch_tower(self, model: Any, handle: PruneHandle) -> None:
        handle.tower.image.patch(handle, model.model.image_tower)
        handle.tower.video.patch(handle, model.model.video_tower)

    def has_pixels(self, arguments: dict[str, Any]) -> bool:
        old, new = "pixel_values_images", _pixels_name()
        if arguments.get(new) is None and arguments.get(old) is not None:
            arguments[new] = arguments.pop(old)  # which newer transformers renames as well
        return super().has_pixels(arguments)

    def visuals(
        self, model: Any, tower: Towers, kind: Kind, pixels: Any, sizes: Any
    ) -> tuple[list[ImageSpan], Callable[[dict], Encoded]]:
        """
        Args:
            pixels: of images (images, 3, H, W), of videos (videos, frames, 3, H, W).
        """
        rank = 4 if kind.name == "image" else 5
        if not isinstance(pixels, Tensor) or pixels.ndim != rank:
            shape = tuple(getattr(pixels, "shape", ())) or type(pixels).__name__
            expected = "(images, 3, H, W)" if rank == 4 else "(videos, frames, 3, H, W)"
            raise HiPruneError(f"{kind.pixels}: {shape}; expected a tensor {expected}")
        own, vision = getattr(tower, kind.name), getattr(model.model, f"{kind.name}_tower")
        frames = 1 if rank == 4 else pixels.shape[1]
        extra = own.tokens.extra if own.tokens.keeps_extra else 0  # CLS of each frame
        tokens, budget = own.tokens.count, own.kept_tokens(1)
        spans = [ImageSpan(frames * (extra + tokens), frames * (extra + budget))] * len(pixels)

        def encode(wanted: dict) -> Encoded:
            count = len(pixels)
            output, states, run = run_tower(
                own, vision, pixels if rank == 4 else pixels.flatten(0, 1), [frames] * count,
                [None] * count, {}, model.config.vision_feature_layer, budgets=[budget] * count,
            )  # fmt: skip
            kept = torch.cat(run.kept(states))
            found = model.model.multi_modal_projector(kept)  # (sum of P, C)
            # As the model's own, of all frames of all videos.
            output.pooler_output = found.unflatten(0, (-1, extra + budget))
            places = [_places(each.indices, tokens, extra) for each in run.selections]
            return Encoded(list(found.chunk(count)), run.selections, places, output)

        return spans, encode


def _places(kept: Tensor, tokens: int, extra: int) -> Tensor:
    """(frames, N') -> (frames * (E + N'),) places among the E + N of all frames."""
    first = torch.arange(len(kept), device=kept.device).unsqueeze(1) * (extra + tokens)
    own = torch.arange(extra, device=kept.device).expand(len(kept), -1)
    return (torch.cat([own, extra + kept], dim=1) + first).flatten()


@functools.cache
def _pixels_name() -> str:
    """The images' argument: transformers 5.23 renames it."""
    from transformers import VideoLlavaForConditionalGeneration as Model

    known = inspect.signature(Model.forward).parameters
    return "pixel_values" if "pixel_values" in known else "pixel_values_images"
