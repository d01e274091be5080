"""vLLM's LLaVA-1.5 and LLaVA-NeXT (llava-hf/*): an image takes N' placeholders.

Kept tokens are those of :mod:`hiprune.models.llava_hf`, in its order: of LLaVA-NeXT the base
view's, then those of the grid of views in raster order, without un-padding and newlines. Their
positions are a plain count. The projector sees kept tokens alone; the output layer runs whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from hiprune.models.clip import ClipTower
from hiprune.models.views import max_views, tower_size
from hiprune.models.vllm_plugin import require_needs, settings
from hiprune.models.vllm_tower import (
    PrunedInfo,
    PrunedProcessor,
    TowerHooks,
    check_engine,
    log_settings,
    passes,
    stands_for,
)
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape
from vllm.config import VllmConfig
from vllm.model_executor.models import llava as vllm_llava
from vllm.model_executor.models import llava_next as vllm_llava_next
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal.parse import ImageSize

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError

KNOWN = frozenset({"object_scores", "output_scores", "cls_attention", "features", "projected"})
# A checkpoint that transformers 5 saved has the tower's names without the part that vLLM looks for.
_NAMES = WeightsMapper(
    orig_to_new_regex={
        re.compile(r"^(model\.)?vision_tower\.(?!vision_model\.)"): "vision_tower.vision_model."
    }
)


def clip_tower(hf_config: Any) -> ClipTower | None:
    """What is known of a model's tower, from its configuration; None where nothing is set."""
    vision, pinpoints = hf_config.vision_config, getattr(hf_config, "image_grid_pinpoints", None)
    views = 1 if pinpoints is None else max_views(pinpoints, vision.image_size)
    described = SimpleNamespace(
        config=vision, encoder=SimpleNamespace(layers=range(vision.num_hidden_layers))
    )

    def tower(config: HiPruneConfig) -> ClipTower:
        for name, expected in (
            ("vision_config.model_type", "clip_vision_model"),
            ("vision_feature_select_strategy", "default"),
        ):
            value = hf_config
            for part in name.split("."):
                value = getattr(value, part)
            if value != expected:
                raise HiPruneError(f"model: {name}={value!r}; expected {expected!r}")
        layer = hf_config.vision_feature_layer
        if not isinstance(layer, int):
            raise HiPruneError(f"vision_feature_layer={layer!r}: expected one layer, an int")
        found = ClipTower(described, layer, config, views)
        if max(found.looks, default=0) > found.output_layer:
            raise HiPruneError(
                f"object_layer={config.object_layer}: expected 1 to {found.output_layer}, the "
                "layers of this model's vision tower that vLLM runs"
            )
        require_needs(config, KNOWN)
        return found

    family = "llava" if pinpoints is None else "llava_next"
    return settings(hf_config, family, tower, **tower_size(described, views))


def grid_of(hf_config: Any, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the grid of views that LLaVA-NeXT cuts an image into."""
    side = hf_config.vision_config.image_size
    return get_anyres_image_grid_shape((height, width), hf_config.image_grid_pinpoints, side)


class _Info(PrunedInfo):
    @classmethod
    def known(cls, hf_config: Any) -> ClipTower | None:
        return clip_tower(hf_config)

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        return self.tower.kept_tokens(self.views(image_height, image_width))

    def views(self, height: int, width: int) -> int:
        return 1


class _LlavaInfo(_Info, vllm_llava.LlavaProcessingInfo):
    pass


class _LlavaNextInfo(_Info, vllm_llava_next.LlavaNextProcessingInfo):
    def views(self, height: int, width: int) -> int:
        rows, columns = grid_of(self.get_hf_config(), height, width)
        return 1 + rows * columns

    def get_image_size_with_most_features(self) -> ImageSize:
        """By views, which the tower sees: kept tokens may be as many of all sizes."""
        sizes = self.get_hf_config().image_grid_pinpoints
        height, width = max(sizes, key=lambda size: self.views(*size))
        return ImageSize(width=width, height=height)


class _LlavaProcessor(PrunedProcessor, vllm_llava.LlavaMultiModalProcessor):
    pass


class _LlavaNextProcessor(PrunedProcessor, vllm_llava_next.LlavaNextMultiModalProcessor):
    pass


class _Pruned:
    """Of a worker: the model's own, but for how an image becomes tokens."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        check_engine(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.hiprune = tower = self.known(self.config)
        layers = self.vision_tower.vision_model.encoder.layers  # up to the output layer
        looked_at = {number: layers[number - 1].self_attn.attn for number in tower.looks}
        self.hiprune_hooks = TowerHooks(tower.capture, looked_at)
        self.hiprune_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        log_settings(tower.config, self.config.vision_config.num_hidden_layers)

    def _process_image_input(self, image_input: Any) -> list[Tensor]:
        """(N', C) of each image."""
        if image_input["type"] != "pixel_values":
            raise HiPruneError("image_embeds: expected pixels, which HiPrune scores")
        views, columns = self._views(image_input)
        tower, found = self.hiprune, []
        # (V, 3, H, W) of each: an image with fewer views than others may be filled up.
        pixels = [
            image.unsqueeze(0) if image.ndim == 3 else image[:count]
            for image, count in zip(image_input["pixel_values"], views, strict=True)
        ]
        sizes = [count * tower.tokens.count for count in views]
        for part in passes(sizes, self.hiprune_tokens):
            found += self._encode(torch.cat(pixels[part]), views[part], columns[part])
        return found

    def _views(self, image_input: Any) -> tuple[list[int], list[int | None]]:
        """V of each image, and how many of its grid's are in a row."""
        images = len(image_input["pixel_values"])
        return [1] * images, [None] * images

    def _encode(
        self, pixels: Tensor, views: Sequence[int], columns: Sequence[int | None]
    ) -> list[Tensor]:
        """(sum of V, 3, H, W) -> (N', C) of each image."""
        tower, model = self.hiprune, self.vision_tower
        # As if looked at: vLLM's layers are run as they are.
        with tower.passing([model], pixels, views, columns, looked_at=True) as run:
            with self.hiprune_hooks.recording(run.recording, self._look):
                features = model(pixels, feature_select_strategy="default")  # (sum of V, N, C_v)
            return run.projected(features, self.multi_modal_projector)

    def _look(self, number: int, attention: Any, query: Tensor, key: Tensor) -> dict[str, Tensor]:
        heads = (attention.num_heads, attention.head_size)
        query, key = (x.unflatten(-1, heads).transpose(1, 2) for x in (query, key))
        found = self.hiprune.looks[number].of_heads(query, key, attention.scale)
        hooks = self.hiprune_hooks
        gather = {"scores": hooks.mean_of_ranks, "cls_attention": hooks.of_all_ranks}
        return {name: gather[name](each) for name, each in found.items()}


@stands_for(vllm_llava.LlavaForConditionalGeneration, _LlavaInfo, _LlavaProcessor)
class HiPruneLlava(_Pruned, vllm_llava.LlavaForConditionalGeneration):
    hf_to_vllm_mapper = _NAMES | vllm_llava.LlavaForConditionalGeneration.hf_to_vllm_mapper


@stands_for(vllm_llava_next.LlavaNextForConditionalGeneration, _LlavaNextInfo, _LlavaNextProcessor)
class HiPruneLlavaNext(_Pruned, vllm_llava_next.LlavaNextForConditionalGeneration):
    hf_to_vllm_mapper = _NAMES | vllm_llava_next.LlavaNextForConditionalGeneration.hf_to_vllm_mapper

    def _views(self, image_input: Any) -> tuple[list[int], list[int | None]]:
        grids = [grid_of(self.config, *size) for size in image_input["image_sizes"].tolist()]
        return [1 + rows * columns for rows, columns in grids], [columns for _, columns in grids]
