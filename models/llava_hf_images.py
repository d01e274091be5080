"""The images of transformers' LLaVA models: pixels -> kept, projected tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hiprune.models.clip import ClipTower, tower_size
from hiprune.models.prompt import ImageSpan
from hiprune.models.views import max_views
from torch import Tensor

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.selection import TokenSelection


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

    def batch(self, pixels: Any, sizes: Any) -> ImageBatch:
        """Images that the tower has not seen yet: all that can be said of them before.

        Args:
            pixels: (images, 3, H, W); of LLaVA-NeXT (images, most V, 3, H, W), or the views one
                after the other, (sum of V, 3, H, W).
            sizes: of LLaVA-NeXT, (images, 2), height and width of each image.
        """
        views, placeholders = self._count(pixels, sizes)
        spans = [
            ImageSpan(count, self.tower.kept_tokens(number))
            for number, count in zip(views, placeholders, strict=True)
        ]
        if self.pinpoints is None:
            columns = [None] * len(views)
        else:
            columns = [self._grid(size)[1] for size in sizes]
        return ImageBatch(self, pixels, views, columns, spans)

    def _count(self, pixels: Any, sizes: Any) -> tuple[list[int], list[int]]:
        """Views V of each image, and its placeholders in the unpruned prompt."""
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


class ImageBatch:
    """The images of one call, which the tower sees when they are first asked for.

    Attributes:
        spans: of each image, its placeholders and N'.
        selections: one an image, after :meth:`encode`.
    """

    selections: list[TokenSelection]

    def __init__(
        self,
        encoder: ImageEncoder,
        pixels: Tensor,
        views: list[int],
        columns: list[int | None],
        spans: list[ImageSpan],
    ) -> None:
        self.spans = spans
        self._encoder = encoder
        self._pixels = pixels
        self._views = views
        self._columns = columns

    @functools.cached_property
    def features(self) -> list[Tensor]:
        """(N', C) of each image: the tower up to the output layer, the projector on the kept."""
        encoder, pixels = self._encoder, self._pixels
        if pixels.ndim == 5:  # images with fewer views than the most are filled up with zeros
            views = zip(pixels, self._views, strict=True)
            pixels = torch.cat([image[:count] for image, count in views])
        weight = encoder.vision.embeddings.patch_embedding.weight
        if weight.device.type != "meta":  # where weights are offloaded, accelerate moves the input
            pixels = pixels.to(weight.device)
        self.selections, kept = encoder.tower.encode(
            pixels, self._views, lambda index, _: self._columns[index]
        )
        projected = encoder.inner.multi_modal_projector(torch.cat(kept))  # (sum of N', C)
        return list(projected.split([len(image) for image in kept]))

    def places(self, number: int) -> Tensor:
        """(N',) the placeholder that each token of an image stands for; labels come from there."""
        selection = self.selections[number]
        if len(selection.indices) == 1:
            return selection.indices[0]
        # Placeholders of LLaVA-NeXT count newlines and leave out padding: no token is any one
        # placeholder's.
        span = self.spans[number]
        places = torch.arange(span.kept, device=selection.indices.device)
        return places.clamp(max=span.placeholders - 1)


@dataclass(frozen=True)
class PromptImages:
    """The images of a batch of prompts: the numbers, in the batch of images, of each prompt's."""

    batch: ImageBatch
    rows: list[list[int]]

    def repeated(self, copies: int) -> PromptImages:
        """Each prompt several times over; an image is encoded once all the same."""
        return PromptImages(self.batch, [row for row in self.rows for _ in range(copies)])

    def spans(self) -> list[list[ImageSpan]]:
        return [[self.batch.spans[number] for number in row] for row in self.rows]

    def features(self) -> Tensor:
        """(sum of N', C), prompt by prompt."""
        return torch.cat([self.batch.features[number] for row in self.rows for number in row])

    def places(self) -> Tensor:
        """(sum of N',), prompt by prompt."""
        return torch.cat([self.batch.places(number) for row in self.rows for number in row])


def size_of(model: Any) -> dict[str, int]:
    """See :func:`hiprune.models.clip.tower_size`."""
    vision, pinpoints = _clip(model.model), getattr(model.config, "image_grid_pinpoints", None)
    return tower_size(vision, max_views(pinpoints, vision.config.image_size) if pinpoints else 1)


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
