"""transformers' Qwen3-VL and its mixture-of-experts form, 5.17 to 5.x.

DeepStack: after three of the tower's blocks a merger of its own makes one more feature a token, a
plane of them, which the language model adds to its states after its first layers. The planes are
pruned with the tokens: their mergers run on the kept ones alone, and the language model gets them
with the pruned prompt's mask of visual tokens. In a video's prompt each frame is a run of
placeholders of its own, with its time written between.

Modifications, on one instance and until the handle's remove(): those of the tower
(:mod:`hiprune.models.qwen_tower`); and the inner language model, given a pruned prompt, gets its
planes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hiprune.models.prompt import ShrunkPrompt
from hiprune.models.qwen import Qwen
from hiprune.models.registry import register
from hiprune.models.visuals import BESIDE, Beside, Encoded
from torch import Tensor

from hiprune.config import Family
from hiprune.handle import Part, PruneHandle


# l is as deep as the paper's of Qwen2.5-VL (14 of 27 blocks, 12 of 24); the paper has no numbers of
# Qwen3-VL.
@register(
    "transformers",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    families=(Family("qwen3_vl", "HIPRUNE_QWEN_RETENTION", 0.334, 1.0, 14, encoder_layers=27),),
    encoders=("qwen3_vl_vision", "qwen3_vl_moe_vision"),
)
class Qwen3VL(Qwen):
    frames_apart = True
    takes_both = False

    def family(self, model: Any) -> str:
        return "qwen3_vl"

    def patch_tower(self, model: Any, handle: PruneHandle) -> None:
        super().patch_tower(model, handle)
        handle.patch(model.model.language_model, _LanguageModel, handle)

    def beside(self, prompt: ShrunkPrompt, encoded: Mapping[str, Encoded]) -> DeepStack:
        planes = []
        for number in range(len(next(iter(encoded.values())).planes)):
            found = [
                (kind, encoded[kind.name].planes[number])
                for kind in self.kinds
                if kind.name in encoded
            ]
            plane = found[0][1].new_zeros(*prompt.visual.shape, found[0][1].shape[-1])
            for kind, features in found:
                plane = prompt.put(plane, kind.number, features)
            planes.append(plane)
        tokens = sum(len(features) for each in encoded.values() for features in each.features)
        return DeepStack(prompt.visual != 0, planes, tokens)


class DeepStack(Beside):
    """Planes of a pruned prompt.

    Args:
        visual: (B, T') bool, where visual tokens stand.
        planes: (B, T', C) each, 0 where there is text.
        tokens: how many visual tokens there are in all; known without waiting for the device.
    """

    def __init__(self, visual: Tensor, planes: list[Tensor], tokens: int) -> None:
        self.visual, self.planes, self.tokens = visual, planes, tokens

    def copies(self, count: int) -> DeepStack:
        return DeepStack(
            self.visual.repeat_interleave(count, dim=0),
            [plane.repeat_interleave(count, dim=0) for plane in self.planes],
            self.tokens * count,
        )

    def arguments(self) -> dict[str, Any]:
        """Of transformers' language model of Qwen3-VL."""
        # The places of the visual tokens, row by row; nothing waits for the device.
        places = (~self.visual).flatten().int().argsort(stable=True)[: self.tokens]
        planes = [plane.flatten(0, 1)[places.to(plane.device)] for plane in self.planes]
        return {"visual_pos_masks": self.visual, "deepstack_visual_embeds": planes}


class _LanguageModel(Part):
    """The inner one, without a head."""

    def forward(text: Any, original: Callable, *args: Any, **kwargs: Any) -> Any:
        beside = kwargs.pop(BESIDE, None)
        return original(*args, **(kwargs if beside is None else kwargs | beside.take()))
