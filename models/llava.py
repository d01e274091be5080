"""HiPrune for the `llava` package (liuhaotian/*): LLaVA-1.5 and LLaVA-NeXT.

Modifications, on one instance and until the handle's remove():
- ``encode_images``: the tower runs up to the output layer (``mm_vision_select_layer``), the kept
  tokens are chosen, and the projector sees these alone.
- ``prepare_inputs_labels_for_multimodal``: images given as views (a list or a 5-D tensor) take
  the package's path for one image each, since pruned views no longer form full grids. Un-padding
  and newline tokens are not used, as in the paper's code (merge type ``spatial``).

Text, labels, padding and positions stay the package's own work.
"""

from __future__ import annotations

import ast
from typing import Any

import torch
from torch import Tensor

from hiprune.capture import AttentionCapture, ScoredLayer
from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle
from hiprune.selector import TokenSelection, select_tokens


def family(model: Any) -> str:
    """ "llava_next" where images are cut into views (anyres), "llava" elsewhere."""
    anyres = getattr(model.config, "image_aspect_ratio", None) == "anyres"
    return "llava_next" if anyres else "llava"


def patch(model: Any, config: HiPruneConfig | None = None) -> PruneHandle:
    """Apply HiPrune to a model of the `llava` package; see :func:`hiprune.apply`."""
    name = family(model)
    config = HiPruneConfig.from_env(name) if config is None else config.resolve(name)
    encoder = _PrunedEncoder(model, config)  # raises before anything is changed
    handle = encoder.handle = PruneHandle(model, config, name)
    handle.on_remove(encoder.hook().remove)
    handle.replace(model, "encode_images", encoder.encode_images)
    handle.replace(model, "prepare_inputs_labels_for_multimodal", encoder.prepare)
    return handle


class _PrunedEncoder:
    """encode_images and prepare_inputs_labels_for_multimodal of one patched model."""

    handle: PruneHandle

    def __init__(self, model: Any, config: HiPruneConfig) -> None:
        self.model = model
        self.config = config
        self.tower = _loaded_tower(model)
        vision = self.tower.vision_tower.vision_model  # transformers' CLIPVisionTransformer
        self.layers = vision.encoder.layers
        self.embed = lambda pixels: vision.pre_layrnorm(vision.embeddings(pixels))
        # hidden_states[k] of a tower with L layers is the output of layer k, k = -1 that of L.
        self.output_layer = self.tower.select_layer % (len(self.layers) + 1)
        self.columns = self.tower.num_patches_per_side  # c
        self._check()
        self.original_prepare = model.prepare_inputs_labels_for_multimodal
        self._views: tuple[list[int], list | None] | None = None

    def _check(self) -> None:
        """What only the loaded model can tell of a configuration."""
        config, n_layers = self.config, len(self.layers)
        if self.tower.select_feature != "patch":
            raise HiPruneError(
                f"mm_vision_select_feature={self.tower.select_feature!r}: accepted is 'patch'"
            )
        if self.output_layer == 0:
            raise HiPruneError(
                f"mm_vision_select_layer={self.tower.select_layer}: the features are the "
                "embeddings; accepted is the output of a layer"
            )
        if config.object_layer > n_layers:
            raise HiPruneError(
                f"object_layer={config.object_layer}: accepted is 1 to {n_layers}, the layers of "
                "this model's vision tower"
            )
        if not isinstance(config.retention, int):
            return
        views = _max_views(self.model)
        tokens = views * self.columns**2
        if config.retention > tokens or config.retention < views:
            raise HiPruneError(
                f"retention={config.retention}: accepted is {views} to {tokens} tokens per image "
                f"({views} views of {self.columns**2} in this model)"
                if views > 1
                else f"retention={config.retention}: accepted is 1 to {tokens}, the tokens per "
                "image of this model"
            )

    def hook(self) -> AttentionCapture:
        numbers = {self.config.object_layer, self.output_layer}
        self.capture = AttentionCapture({n: _scored(self.layers[n - 1].self_attn) for n in numbers})
        return self.capture

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
        if isinstance(images, (list, tuple)) or (images is not None and images.ndim == 5):
            views = [image.unsqueeze(0) if image.ndim == 3 else image for image in images]
            self._views = ([len(view) for view in views], image_sizes)
            images = torch.cat(views)  # (sum of V, 3, H, W)
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

    def encode_images(self, images: Tensor) -> Tensor | list[Tensor]:
        """Pixels of all views -> one (N', C) feature matrix an image.

        A tensor (B, N', C) where every image is one view, as the package's own method gives.
        """
        views, sizes = self._views or ([1] * len(images), None)
        hidden, scores = self._encode(images)  # (sum of V, N, C_v), layer -> (sum of V, N)
        object_scores, output_scores = scores[self.config.object_layer], scores[self.output_layer]

        selections: list[TokenSelection] = []
        kept: list[Tensor] = []
        if all(count == 1 for count in views):
            selection = self._select(object_scores, output_scores, 1)
            kept = list(selection.gather(hidden))  # B x (N', C_v)
            selections = [selection[i : i + 1] for i in range(len(views))]
        else:
            per_image = zip(
                *(tensor.split(views) for tensor in (hidden, object_scores, output_scores)),
                strict=True,
            )
            for index, (image, object_score, output_score) in enumerate(per_image):
                selection = self._select(object_score, output_score, len(image))
                features = selection.gather(image)  # (V, N'/V, C_v)
                order = self._merge_order(selection, sizes[index] if sizes else None)
                kept.append(features.flatten(0, 1)[order])  # (N', C_v)
                selections.append(selection)
        self.handle.selections = selections

        lengths = [len(image) for image in kept]
        projected = self.model.get_model().mm_projector(torch.cat(kept))  # (sum of N', C)
        projected = projected.split(lengths)
        return torch.stack(projected) if self._views is None else list(projected)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Patch features of the output layer and the scores of both layers, CLS dropped."""
        tower = self.tower
        with self.capture.recording() as scores:
            hidden = self.embed(images.to(device=tower.device, dtype=tower.dtype))  # (B, 1+N, C_v)
            # An object layer beyond the output layer is legal in the paper's ablation; then, and
            # only then, layers after the output layer run.
            for number in range(1, max(self.output_layer, self.config.object_layer) + 1):
                hidden = self.layers[number - 1](
                    hidden, attention_mask=None, causal_attention_mask=None
                )[0]
                if number == self.output_layer:
                    features = hidden
        scores = {number: score[:, 1:] for number, score in scores.items()}
        return features[:, 1:].to(images.dtype), scores

    def _select(self, object_scores: Tensor, output_scores: Tensor, views: int) -> TokenSelection:
        """(V, N) scores of one image's views, or of B images of one view each."""
        budget = self.config.budget(views * self.columns**2)
        if budget < views:
            raise HiPruneError(
                f"retention={self.config.retention}: leaves no token for each of the {views} views "
                f"of an image; accepted is at least {views} tokens"
            )
        return select_tokens(
            object_scores,
            output_scores,
            columns=self.columns,
            budget=budget // views,
            alpha=self.config.alpha,
        )

    def _merge_order(self, selection: TokenSelection, image_size: Any) -> Tensor:
        """(N',) order of an image's kept tokens, from view by view to how the LLM reads them."""
        views, per_view = selection.indices.shape
        tokens = torch.arange(views * per_view, device=selection.indices.device)
        merge_type = getattr(self.model.config, "mm_patch_merge_type", "flat")
        if merge_type == "flat" or views == 1:
            return tokens
        columns = self._grid_columns(merge_type, image_size, views)
        side = self.columns
        row, column = selection.indices[1:] // side, selection.indices[1:] % side  # (V-1, N'/V)
        view = torch.arange(views - 1, device=row.device).unsqueeze(1)
        row = row + view // columns * side
        column = column + view % columns * side
        raster = row * (columns * side) + column  # place in the merged grid
        # The base view comes first, then the grid as one picture.
        return torch.cat([tokens[:per_view], per_view + raster.flatten().argsort()])

    def _grid_columns(self, merge_type: str, image_size: Any, views: int) -> int:
        """Grid views in a row, for an image of ``image_size`` (width, height)."""
        from llava.mm_utils import get_anyres_image_grid_shape

        config = self.model.config
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
            image_size, config.image_grid_pinpoints, self.tower.config.image_size
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
    return tower


def _max_views(model: Any) -> int:
    """The most views that the model cuts an image into, the base view included."""
    if family(model) != "llava_next":
        return 1
    size = model.get_vision_tower().config.image_size
    pinpoints = model.config.image_grid_pinpoints  # [[width, height], ...], or that as text
    if isinstance(pinpoints, str):
        pinpoints = ast.literal_eval(pinpoints)
    return 1 + max((width // size) * (height // size) for width, height in pinpoints)


def _scored(attention: Any) -> ScoredLayer:
    """A CLIPAttention: queries and keys are its q_proj and k_proj, cut into heads."""

    def to_heads(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        query, key = (x.unflatten(-1, (attention.num_heads, -1)) for x in (query, key))
        return query.transpose(1, 2), key.transpose(1, 2)  # (B, H, 1+N, D)

    return ScoredLayer(attention, (attention.q_proj, attention.k_proj), to_heads, attention.scale)
