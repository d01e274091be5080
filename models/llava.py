"""HiPrune for the `llava` package (liuhaotian/*): LLaVA-1.5 and LLaVA-NeXT.

Modifications, on one instance and until the handle's remove():
- ``encode_images``: the tower's tokens are chosen as it runs (:mod:`hiprune.models.clip`), and the
  projector sees the kept ones alone (all, for a method that looks at projected ones). It is where
  the package's code, and that of others that call it, takes features from: so it is pruned wherever
  it is called. The tower on its own, ``get_vision_tower()(images)``, gives all of them.
- ``prepare_inputs_labels_for_multimodal``: images given as views (a list or a 5-D tensor) take
  the package's path for one image each, since pruned views no longer form full grids. Un-padding
  and newline tokens are not used, as in the paper's code (merge type ``spatial``).

Text, labels, padding and positions stay the package's own work, and so do gradients: its tower runs
without.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from hiprune.models.clip import ClipTower
from hiprune.models.clip_pass import pass_of
from hiprune.models.clip_text import ClipText
from hiprune.models.registry import register
from hiprune.models.views import FAMILIES, max_views, tower_size
from hiprune.models.words import given, reading
from torch import Tensor

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import STATE, Part, PruneHandle


@register("llava", "LlavaMetaForCausalLM", families=FAMILIES)
class LlavaPackage:
    """The adapter."""

    def family(self, model: Any) -> str:
        """ "llava_next" where images are cut into views (anyres), "llava" elsewhere."""
        anyres = getattr(model.config, "image_aspect_ratio", None) == "anyres"
        return "llava_next" if anyres else "llava"

    def patch(
        self, model: Any, config: HiPruneConfig | None = None, text: Any = None
    ) -> PruneHandle:
        """Apply HiPrune to a model of the `llava` package; see :func:`hiprune.apply`."""
        name, clip, views = self.family(model), _loaded_tower(model), 1
        if name == "llava_next":
            pinpoints = model.config.image_grid_pinpoints  # [[width, height], ...], or that as text
            if isinstance(pinpoints, str):
                pinpoints = ast.literal_eval(pinpoints)
            views = max_views(pinpoints, clip.config.image_size)
        size = tower_size(clip, views)
        config = (
            HiPruneConfig.from_env(name, **size) if config is None else config.resolve(name, **size)
        )
        tower = ClipTower(clip.vision_tower, clip.select_layer, config, views)
        if tower.reads_text:
            own = getattr(clip, "vision_tower_name", None)
            tower.text = ClipText.found(text, own).fits(clip.vision_tower)
        handle = PruneHandle(model, config, name, self)
        try:
            handle.tower = tower
            tower.patch(handle, clip.vision_tower)
            handle.patch(clip, _VisionTower, tower)
            handle.patch(model, _Model, handle)
        except BaseException:
            handle.remove()
            raise
        return handle

    def encode_images(
        self, model: Any, handle: PruneHandle, pixels: Any, sizes: Any, text: Any = None
    ) -> list:
        """Images or their views, as the model's forward takes them, without a prompt."""
        words = given(text, len(pixels), handle.tower.text)
        with _preparing(handle, pixels, sizes) as images, reading(words):
            return list(model.encode_images(images))


# The views V of each image, and the images' sizes, of the prompt that a handle's model prepares.
_PREPARED: ContextVar[tuple[PruneHandle, list[int], Any] | None] = ContextVar(
    "hiprune_llava_views", default=None
)


@contextmanager
def _preparing(handle: PruneHandle, images: Any, image_sizes: Any) -> Iterator[Any]:
    """Views one after the other, (sum of V, 3, H, W); whose they are is noted."""
    prepared = None
    if isinstance(images, (list, tuple)) or (images is not None and images.ndim == 5):
        views = [image.unsqueeze(0) if image.ndim == 3 else image for image in images]
        prepared = (handle, [len(view) for view in views], image_sizes)
        images = torch.cat(views)
    token = _PREPARED.set(prepared)
    try:
        yield images
    finally:
        _PREPARED.reset(token)


class _Model(Part):
    def prepare_inputs_labels_for_multimodal(
        model: Any,
        original: Callable,
        input_ids: Any,
        position_ids: Any,
        attention_mask: Any,
        past_key_values: Any,
        labels: Any,
        images: Any,
        image_sizes: Any = None,
    ) -> Any:
        """The package's method; views are handed to it as one image each."""
        text = (input_ids, position_ids, attention_mask, past_key_values, labels)
        if images is not None and input_ids.shape[1] > 1:  # else a step on a cache
            _check_images(input_ids, attention_mask, len(images))
        handle, words = vars(model)[STATE], None
        if images is not None and input_ids.shape[1] > 1 and handle.tower.reads_text:
            words = _words(model, handle.tower.text, input_ids, attention_mask)
        with _preparing(handle, images, image_sizes) as images, reading(words):
            return original(*text, images, image_sizes)

    def encode_images(model: Any, original: Callable, images: Tensor) -> Tensor | list[Tensor]:
        """Pixels of all views -> one (N', C) feature matrix an image.

        A tensor (B, N', C) where every image is one view, as the package's own method gives.
        """
        handle, prepared = vars(model)[STATE], _PREPARED.get()
        in_views = prepared is not None and prepared[0] is handle
        in_views = in_views and sum(prepared[1]) == len(images)  # else a call within that one
        views, sizes = prepared[1:] if in_views else ([1] * len(images), None)
        clip = model.get_vision_tower()
        side = clip.config.image_size
        columns = [_grid_columns(model, side, sizes, *each) for each in enumerate(views)]
        called = [clip, clip.vision_tower]
        with handle.tower.passing(called, images, views, columns) as run:
            features = clip(images)
        projected = run.projected(features, model.get_model().mm_projector)  # (N', C) of each image
        handle.selections = run.selections
        return projected if in_views else torch.stack(projected)


class _VisionTower(Part):
    """llava's CLIPVisionTower, which asks transformers' CLIPVisionModel for all hidden states."""

    def forward(clip: Any, original: Callable, images: Tensor) -> Tensor:
        """(sum of V, 3, H, W) -> (sum of V, N, C_v), or what a short pass's last layer gives."""
        run = pass_of(clip)
        if run is None or not run.short:
            return original(images)
        pixels = images.to(device=clip.device, dtype=clip.dtype)
        return clip.vision_tower(pixels)[0].to(images.dtype)


def _words(model: Any, text: ClipText, ids: Tensor, mask: Tensor | None) -> list[Tensor]:
    """(M, E) of each image: its prompt's; a prompt without an image has a blank one."""
    from llava.constants import IMAGE_TOKEN_INDEX

    visual = ids == IMAGE_TOKEN_INDEX
    counts = (visual if mask is None else visual & mask.bool()).sum(dim=1).tolist()
    found = text.of_prompts(model, ids, mask, visual)
    return [words for words, count in zip(found, counts, strict=True) for _ in range(max(count, 1))]


def _check_images(input_ids: Tensor, attention_mask: Tensor | None, images: int) -> None:
    """The package takes an image for each placeholder, and a blank one for a prompt without."""
    from llava.constants import IMAGE_TOKEN_INDEX

    placeholders = input_ids == IMAGE_TOKEN_INDEX
    if attention_mask is not None:
        placeholders = placeholders & attention_mask.bool()
    counts = placeholders.sum(dim=1).tolist()
    needed = sum(max(count, 1) for count in counts)
    if images < needed:
        raise HiPruneError(
            f"images: {images} for prompts with {counts} placeholders; expected {needed}, one for "
            "each and a blank one for a prompt without"
        )


def _grid_columns(model: Any, side: int, sizes: Any, index: int, views: int) -> int | None:
    """Grid views in a row of an image, whose size is (width, height), with V views of a side."""
    from llava.mm_utils import get_anyres_image_grid_shape

    config = model.config
    merge_type = getattr(config, "mm_patch_merge_type", "flat")
    if merge_type == "flat" or views == 1:
        return None
    if not merge_type.startswith("spatial"):
        raise HiPruneError(f"mm_patch_merge_type={merge_type!r}: expected 'flat' or 'spatial*'")
    aspect_ratio = getattr(config, "image_aspect_ratio", None)
    if aspect_ratio != "anyres":
        raise HiPruneError(
            f"image_aspect_ratio={aspect_ratio!r} with an image of {views} views: expected 'anyres'"
        )
    if sizes is None:
        raise HiPruneError("image_sizes=None: expected (width, height) of every image")
    columns, rows = get_anyres_image_grid_shape(sizes[index], config.image_grid_pinpoints, side)
    if rows * columns != views - 1:
        raise HiPruneError(
            f"images: {views} views of an image of size {tuple(sizes[index])}; expected "
            f"1 + {rows} x {columns}"
        )
    return columns


def _loaded_tower(model: Any) -> Any:
    tower = model.get_vision_tower()
    if tower is None or not tower.is_loaded:
        raise HiPruneError(
            "model: its vision tower is not loaded; expected a model from llava's "
            "load_pretrained_model, or call get_vision_tower().load_model()"
        )
    if tower.select_feature != "patch":
        raise HiPruneError(f"mm_vision_select_feature={tower.select_feature!r}: expected 'patch'")
    return tower
