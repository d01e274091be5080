"""The images of transformers' LLaVA models: pixels -> kept, projected tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hiprune.models.clip import ClipTower, max_views
from hiprune.models.llava_hf_prompt import KeptImage
from torch import Tensor

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.selector import TokenSelection


class ImageEncoder:
    """Tower, selection and projector of one patched model.

    Raises:
        HiPruneError: a tower, layer or budget that HiPrune cannot work with.
    """

    def __init__(self, model: Any, config: HiPruneConfig) -> None:
        self.inner = model.model  # LlavaModel or LlavaNextModel
        self.pinpoints = getattr(model.config, "image_grid_pinpoints", None)  # [height, width]
        self.vision = _clip(self.inner)
        self.side = self.vision.config.image_size
        views = 1 if self.pinpoints is None else max_views(self.pinpoints, self.side)
        self.tower = ClipTower(
            self.vision,
            model.config.vision_feature_layer,
            config,
            views,
            lambda layer, hidden: layer(hidden, None),  # (hidden states, attention mask)
        )

    def count(self, pixels: Any, sizes: Any) -> tuple[list[int], list[int]]:
        """Views V of each image, and its placeholders in the unpruned prompt.

        Args:
            pixels: (images, 3, H, W); of LLaVA-NeXT (images, most V, 3, H, W), or the views one
                after the other, (sum of V, 3, H, W).
            sizes: of LLaVA-NeXT, (images, 2), height and width of each image.
        """
        if not isinstance(pixels, Tensor) or pixels.ndim not in (4, 5):
            shape = tuple(getattr(pixels, "shape", ())) or type(pixels).__name__
            raise HiPruneError(f"pixel_values: {shape}; accepted is a tensor (..., 3, H, W)")
        tokens = self.tower.columns**2  # N
        if self.pinpoints is None:
            if pixels.ndim != 4:
                raise HiPruneError(
                    f"pixel_values: shape {tuple(pixels.shape)}; accepted is (images, 3, H, W)"
                )
            return [1] * len(pixels), [tokens] * len(pixels)
        if sizes is None:
            raise HiPruneError("image_sizes=None: accepted is (height, width) of every image")
        grids = [self._grid(size) for size in sizes]
        views = [1 + rows * columns for rows, columns in grids]
        stacked = pixels.ndim == 5 and pixels.shape[1] >= max(views, default=0)
        if len(pixels) != (len(views) if stacked else sum(views)):
            raise HiPruneError(
                f"pixel_values: shape {tuple(pixels.shape)}; accepted are images of {views} views, "
                f"as image_sizes tell ({len(views)} images)"
            )
        return views, self._placeholders(views, sizes)

    def encode(
        self, pixels: Tensor, sizes: Any, views: Sequence[int], placeholders: Sequence[int]
    ) -> tuple[list[KeptImage], list[TokenSelection]]:
        """Run the tower up to the output layer and the projector on the kept tokens."""
        if pixels.ndim == 5:  # images with fewer views than the most are filled up with zeros
            pixels = torch.cat([image[:count] for image, count in zip(pixels, views, strict=True)])
        weight = self.vision.embeddings.patch_embedding.weight
        if weight.device.type != "meta":  # where weights are offloaded, accelerate moves the input
            pixels = pixels.to(weight.device)
        features, *scores = self.tower.encode(pixels)  # (sum of V, N, C_v), (sum of V, N) twice
        selections, kept = self.tower.choose(
            features,
            *scores,
            views,
            lambda index, _: None if self.pinpoints is None else self._grid(sizes[index])[1],
        )
        projected = self.inner.multi_modal_projector(torch.cat(kept))  # (sum of N', C)
        images = []
        parts = projected.split([len(image) for image in kept])
        for features, count, selection in zip(parts, placeholders, selections, strict=True):
            if len(selection.indices) == 1:
                places = selection.indices[0].tolist()
            else:
                # Placeholders of LLaVA-NeXT count newlines and leave out padding: no token is any
                # one placeholder's.
                places = [min(place, count - 1) for place in range(len(features))]
            images.append(KeptImage(features, count, places))
        return images, selections

    def _grid(self, size: Any) -> tuple[int, int]:
        """Rows and columns of the grid of views for an image of (height, width)."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

        return get_anyres_image_grid_shape(size, self.pinpoints, self.side)

    def _placeholders(self, views: Sequence[int], sizes: Any) -> list[int]:
        """How many tokens the unpatched model makes of each image, un-padded and with newlines."""
        shape = (self.tower.columns**2, 1)
        packed, _ = self.inner.pack_image_features(
            [torch.empty(count, *shape, device="meta") for count in views],
            sizes,
            vision_feature_select_strategy="default",
            image_newline=torch.empty(1, device="meta"),
        )
        return [len(image) for image in packed]


def _clip(inner: Any) -> Any:
    """The CLIP tower of a model, after a look at how its features are taken."""
    config, tower = inner.config, inner.vision_tower
    if not hasattr(tower, "pre_layrnorm"):
        raise HiPruneError(
            f"model: its vision tower is a {type(tower).__name__}; accepted is a CLIPVisionModel"
        )
    if not isinstance(config.vision_feature_layer, int):
        raise HiPruneError(
            f"vision_feature_layer={config.vision_feature_layer!r}: accepted is one layer, an int"
        )
    if config.vision_feature_select_strategy != "default":
        raise HiPruneError(
            f"vision_feature_select_strategy={config.vision_feature_select_strategy!r}: accepted "
            "is 'default'"
        )
    return tower
