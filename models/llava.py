"""HiPrune for the `llava` package (liuhaotian/*): LLaVA-1.5 and LLaVA-NeXT.

Modifications, on one instance and until the handle's remove():
- ``encode_images``: the tower runs up to the output layer (``mm_vision_select_layer``), the kept
  tokens are chosen, and the rest of that layer and the projector see these alone.
- ``forward`` of the tower's attention modules: SDPA while tokens are dropped, where transformers
  4.37 has eager alone.
- ``prepare_inputs_labels_for_multimodal``: images given as views (a list or a 5-D tensor) take
  the package's path for one image each, since pruned views no longer form full grids. Un-padding
  and newline tokens are not used, as in the paper's code (merge type ``spatial``).

Text, labels, padding and positions stay the package's own work.
"""

from __future__ import annotations

import ast
import functools
from typing import Any

import torch
from hiprune.models.base import register
from hiprune.models.clip import FAMILIES, ClipTower, tower_size
from hiprune.models.clip_layer import sdpa_forward
from hiprune.models.views import max_views
from torch import Tensor

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle


def family(model: Any) -> str:
    """ "llava_next" where images are cut into views (anyres), "llava" elsewhere."""
    anyres = getattr(model.config, "image_aspect_ratio", None) == "anyres"
    return "llava_next" if anyres else "llava"


def patch(model: Any, config: HiPruneConfig | None = None) -> PruneHandle:
    """Apply HiPrune to a model of the `llava` package; see :func:`hiprune.apply`."""
    name = family(model)
    size = tower_size(_loaded_tower(model).vision_tower.vision_model, _max_views(model))
    config = (
        HiPruneConfig.from_env(name, **size) if config is None else config.resolve(name, **size)
    )
    encoder = _PrunedEncoder(model, config)  # raises before anything is changed
    handle = encoder.handle = PruneHandle(model, config, name)
    handle.placed(encoder.tower.hook())
    for layer in encoder.tower.layers:
        attention = layer.self_attn
        if "forward" in vars(attention) and not hasattr(attention, "_hf_hook"):
            continue  # somebody's own attention: any kernel will do
        wrap = functools.partial(sdpa_forward, attention, lambda: encoder.tower.dropping)
        handle.wrap_forward(attention, wrap)
    handle.encode = encoder.encode
    handle.replace(model, "encode_images", encoder.encode_images)
    handle.replace(model, "prepare_inputs_labels_for_multimodal", encoder.prepare)
    return handle


@register("llava", "LlavaMetaForCausalLM", families=FAMILIES)
class LlavaPackage:
    """The adapter, as the registry asks for it."""

    family, patch = staticmethod(family), staticmethod(patch)


class _PrunedEncoder:
    """encode_images and prepare_inputs_labels_for_multimodal of one patched model."""

    handle: PruneHandle

    def __init__(self, model: Any, config: HiPruneConfig) -> None:
        self.model = model
        self.clip = _loaded_tower(model)  # llava's CLIPVisionTower
        self.tower = ClipTower(
            self.clip.vision_tower.vision_model,
            self.clip.select_layer,
            config,
            _max_views(model),
            lambda layer, hidden: layer(hidden, attention_mask=None, causal_attention_mask=None)[0],
        )
        self.original_prepare = model.prepare_inputs_labels_for_multimodal
        self._views: tuple[list[int], list | None] | None = None

    def prepare(
        self,
        input_ids,
        position_ids,
        attention_mask,
        past_key_values,
        labels,
        images,
        image_sizes=None,
    ):
        """The package's method; views are handed to it as one image each."""
        images = self._flat(images, image_sizes)
        try:
            return self.original_prepare(
                input_ids,
                position_ids,
                attention_mask,
                past_key_values,
                labels,
                images,
                image_sizes,
            )
        finally:
            self._views = None

    def encode(self, images: Any, image_sizes: Any) -> list[Tensor]:
        """Images or their views, as the model's forward takes them, without a prompt."""
        images = self._flat(images, image_sizes)
        try:
            return list(self.encode_images(images))
        finally:
            self._views = None

    def _flat(self, images: Any, image_sizes: Any) -> Any:
        """Views one after the other, (sum of V, 3, H, W); whose they are is noted."""
        if not isinstance(images, (list, tuple)) and (images is None or images.ndim != 5):
            return images
        views = [image.unsqueeze(0) if image.ndim == 3 else image for image in images]
        self._views = ([len(view) for view in views], image_sizes)
        return torch.cat(views)

    def encode_images(self, images: Tensor) -> Tensor | list[Tensor]:
        """Pixels of all views -> one (N', C) feature matrix an image.

        A tensor (B, N', C) where every image is one view, as the package's own method gives.
        """
        views, sizes = self._views or ([1] * len(images), None)
        self.handle.selections, kept = self.tower.encode(
            images.to(device=self.clip.device, dtype=self.clip.dtype),
            views,
            lambda index, count: self._grid_columns(None if sizes is None else sizes[index], count),
            images.dtype,
        )
        lengths = [len(image) for image in kept]
        projected = self.model.get_model().mm_projector(torch.cat(kept))  # (sum of N', C)
        projected = projected.split(lengths)
        return torch.stack(projected) if self._views is None else list(projected)

    def _grid_columns(self, image_size: Any, views: int) -> int | None:
        """Grid views in a row, for an image of ``image_size`` (width, height) and V views."""
        from llava.mm_utils import get_anyres_image_grid_shape

        config = self.model.config
        merge_type = getattr(config, "mm_patch_merge_type", "flat")
        if merge_type == "flat" or views == 1:
            return None
        if not merge_type.startswith("spatial"):
            raise HiPruneError(
                f"mm_patch_merge_type={merge_type!r}: accepted is 'flat' or 'spatial*'"
            )
        if family(self.model) != "llava_next":
            raise HiPruneError(
                f"image_aspect_ratio={getattr(config, 'image_aspect_ratio', None)!r} with an image "
                f"of {views} views: accepted is 'anyres'"
            )
        if image_size is None:
            raise HiPruneError("image_sizes=None: accepted is (width, height) of every image")
        columns, rows = get_anyres_image_grid_shape(
            image_size, config.image_grid_pinpoints, self.clip.config.image_size
        )
        if rows * columns != views - 1:
            raise HiPruneError(
                f"images: {views} views of an image of size {tuple(image_size)}; accepted is "
                f"1 + {rows} x {columns}"
            )
        return columns


def _loaded_tower(model: Any) -> Any:
    tower = model.get_vision_tower()
    if tower is None or not tower.is_loaded:
        raise HiPruneError(
            "model: its vision tower is not loaded; accepted is a model from llava's "
            "load_pretrained_model, or call get_vision_tower().load_model()"
        )
    if tower.select_feature != "patch":
        raise HiPruneError(
            f"mm_vision_select_feature={tower.select_feature!r}: accepted is 'patch'"
        )
    return tower


def _max_views(model: Any) -> int:
    if family(model) != "llava_next":
        return 1
    pinpoints = model.config.image_grid_pinpoints  # [[width, height], ...], or that as text
    if isinstance(pinpoints, str):
        pinpoints = ast.literal_eval(pinpoints)
    return max_views(pinpoints, model.get_vision_tower().config.image_size)
