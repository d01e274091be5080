"""HiPrune for transformers' Qwen2.5-VL, 5.17 to 5.x.

Modifications, on one instance and until the handle's remove():
- the vision tower's ``forward`` records the scores of block l and of the last block, whose rest,
  once they are known, and the ``merger`` run on the kept tokens alone (a merged token is 4 patches;
  groups are kept whole), so that the tower's ``last_hidden_state`` holds these, in raster order;
- the model's ``forward``, when it is given pixels, drops the other tokens' placeholders and goes on
  from embeddings; kept tokens keep the M-RoPE positions of the unpruned prompt;
- ``generate`` does the same once, ahead of the first step, so that decoding goes on after the
  unpruned prompt and the prompt's ids stay in front of the answer.

Videos: the tokens of each frame are pruned as an image's are, which goes beyond the paper.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from hiprune.models.prompt import ImageSpan, PromptPlan, ShrunkPrompt, images_of_rows
from hiprune.models.qwen2_5_vl_lengths import generation_lengths
from hiprune.models.qwen2_5_vl_tower import PrunedTower, flat_indices
from hiprune.models.transformers_version import require_transformers
from torch import Tensor

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import PruneHandle

FAMILY = "qwen2_5_vl"
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
VISUAL_INPUTS = (
    *_PIXELS.values(),
    "image_grid_thw",
    "video_grid_thw",
    "second_per_grid_ts",
    "mm_token_type_ids",
)


def patch(model: Any, config: HiPruneConfig | None = None) -> PruneHandle:
    """Apply HiPrune to a Qwen2_5_VLForConditionalGeneration; see :func:`hiprune.apply`.

    An int ``retention`` counts tokens per image (per frame of a video); an image that has fewer
    keeps them all. An object layer with windowed attention is scored within its windows, as the
    model attends.
    """
    require_transformers()
    size = {"layers": len(model.model.visual.blocks)}
    config = (
        HiPruneConfig.from_env(FAMILY, **size) if config is None else config.resolve(FAMILY, **size)
    )
    tower = PrunedTower(model.model.visual, config)  # raises before anything is changed
    handle = PruneHandle(model, config, FAMILY)
    tower.patch(handle)
    pruned = _PrunedModel(model, tower, handle)
    handle.encode = pruned.encode_images
    handle.replace(model, "forward", pruned.wrap_forward())
    handle.replace(model, "generate", pruned.wrap_generate())
    return handle


@dataclass(frozen=True)
class _Visuals:
    """All images, or all videos, of a batch of prompts."""

    kind: int  # its number in the plan
    name: str
    pixels: str  # the argument that they come in
    token: int  # of the placeholders
    grid: Tensor  # (n, 3)
    spans: list[ImageSpan]  # n
    rows: list[list[int]]  # numbers of each prompt's


class _PrunedModel:
    """forward and generate of one patched model."""

    def __init__(self, model: Any, tower: PrunedTower, handle: PruneHandle) -> None:
        self.model = model
        self.tower = tower
        self.handle = handle
        # Those that began with a pruned prompt.
        self.caches: WeakSet[Any] = WeakSet()

    @staticmethod
    def _refuse(cache: Any) -> None:
        """Raise for a cache that holds something: its length is not that of the ids."""
        if cache is not None and cache.get_seq_length() > 0:
            raise HiPruneError(
                "past_key_values: a cache of an earlier turn, whose pruned prompt does not line "
                "up with the ids; accepted is the whole conversation without a cache"
            )

    def wrap_forward(self) -> Any:
        original = self.model.forward
        signature = inspect.signature(original)

        @functools.wraps(original)  # generate looks at its signature
        def forward(*args: Any, **kwargs: Any) -> Any:
            arguments = _by_name(signature, args, kwargs)
            if not _has_pixels(arguments):
                return original(**arguments)
            self._refuse(arguments.get("past_key_values"))
            if isinstance(arguments.get("logits_to_keep"), Tensor):
                raise HiPruneError(
                    "logits_to_keep: a tensor counts positions of the unpruned prompt; accepted is "
                    "an int"
                )
            prompt = self._prune(arguments)
            labels = arguments.get("labels")
            if labels is not None:
                arguments["labels"] = prompt.take(labels, padding=-100)
            output = original(**arguments)
            for value in output if isinstance(output, tuple) else output.values():
                if hasattr(value, "get_seq_length"):
                    self.caches.add(value)
            return output

        return forward

    def wrap_generate(self) -> Any:
        original = self.model.generate
        signature = inspect.signature(original)

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            arguments = _by_name(signature, args, kwargs)
            cache = arguments.get("past_key_values")
            if not _has_pixels(arguments):
                if cache in self.caches:
                    self._refuse(cache)
                return original(**arguments)
            self._refuse(cache)
            if cache is not None:
                self.caches.add(cache)
            if arguments.get("inputs") is not None:
                arguments["input_ids"] = arguments.pop("inputs")
            ids = arguments.get("input_ids")
            self._prune(arguments, for_generate=True)
            defaults = arguments.get("generation_config") or self.model.generation_config
            # The ids go along with the embeddings: they come back in front of the answer, and
            # what looks at the prompt (a repetition penalty, say) sees all of it.
            arguments["input_ids"] = ids
            return original(**generation_lengths(arguments, defaults, ids.shape[1]))

        return generate

    def _prune(self, arguments: dict[str, Any], for_generate: bool = False) -> ShrunkPrompt:
        """Replace ids and pixels by embeddings, mask and positions of the pruned prompt."""
        model, inner = self.model, self.model.model
        ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
        if ids is None:
            raise HiPruneError("input_ids=None with pixels; accepted are the prompt's ids")
        if mask is not None and mask.ndim != 2:
            raise HiPruneError(f"attention_mask: {mask.ndim} dimensions; accepted is (B, T)")
        positions, fresh_deltas = self._positions(arguments, ids, mask, for_generate)

        # What is read on the host is read here, before the tower runs.
        visuals = self._visuals(arguments, ids)
        kinds = sum(visual.kind * (ids == visual.token) for visual in visuals)
        spans = {
            visual.kind: [[visual.spans[number] for number in row] for row in visual.rows]
            for visual in visuals
        }
        plan = PromptPlan(kinds, mask, spans, from_right=bool(arguments.get("logits_to_keep")))
        features, places, selections = {}, {}, []
        for visual in visuals:
            features[visual.kind] = self._encode(visual.name, arguments[visual.pixels], visual.grid)
            places[visual.kind] = torch.cat(
                [flat_indices([selection]) for selection in self.tower.selections]
            )
            selections += self.tower.selections
        self.handle.selections = selections

        prompt = plan.fill(places)
        embeds = model.get_input_embeddings()(prompt.take(ids))  # (B, T', C)
        for kind, values in features.items():
            embeds = prompt.put(embeds, kind, values)
        for name in VISUAL_INPUTS:
            arguments.pop(name, None)
        arguments["input_ids"] = None
        arguments["inputs_embeds"] = embeds
        arguments["attention_mask"] = prompt.real.long() if prompt.mask is None else prompt.mask
        arguments["position_ids"] = prompt.take(positions)
        if fresh_deltas:
            # A next step's position is counted from the length in the cache, which is shorter now.
            inner.rope_deltas = inner.rope_deltas + prompt.dropped
        return prompt

    def _visuals(self, arguments: dict[str, Any], ids: Tensor) -> list[_Visuals]:
        """The images and the videos of the prompts, where there are any."""
        found = []
        for kind, (name, pixels) in enumerate(_PIXELS.items(), 1):
            if arguments.get(pixels) is None:
                continue
            grid = arguments.get(f"{name}_grid_thw")
            if grid is None:
                raise HiPruneError(f"{name}_grid_thw=None with {pixels}; accepted is (n, 3)")
            spans = self.tower.spans(grid)
            token = getattr(self.model.config, f"{name}_token_id")
            counts = (ids == token).sum(dim=1).tolist()
            rows = images_of_rows(counts, [span.placeholders for span in spans], pixels)
            found.append(_Visuals(kind, name, pixels, token, grid, spans, rows))
        return found

    def _encode(self, name: str, pixels: Tensor, grid: Tensor) -> Tensor:
        """The kept tokens of all images, or of all videos, (sum of N', C)."""
        encode = getattr(self.model.model, f"get_{name}_features")
        encoded = encode(pixels, grid, return_dict=True)
        return torch.cat(encoded.pooler_output)[flat_indices(self.tower.selections)]

    def encode_images(self, pixels: Tensor, grid: Tensor | None) -> list[Tensor]:
        if grid is None:
            raise HiPruneError("sizes=None; accepted is image_grid_thw, (n, 3)")
        kept = [span.kept for span in self.tower.spans(grid)]
        features = self._encode("image", pixels, grid).split(kept)
        self.handle.selections = self.tower.selections
        return list(features)

    def _positions(
        self, arguments: dict[str, Any], ids: Tensor, mask: Tensor | None, for_generate: bool
    ) -> tuple[Tensor, bool]:
        """(3, B, T) of the unpruned prompt, as the unpatched model has them.

        And whether the model has noted by how much they run ahead of a plain count.
        """
        given = arguments.get("position_ids")
        if given is not None:
            given = given.unsqueeze(0).expand(3, -1, -1) if given.ndim == 2 else given
            return given[-3:], False  # a fourth row, in front, counts text alone
        found = self.model.model.compute_3d_position_ids(
            input_ids=ids,
            image_grid_thw=arguments.get("image_grid_thw"),
            video_grid_thw=arguments.get("video_grid_thw"),
            inputs_embeds=None,
            attention_mask=mask,
            past_key_values=None,
            second_per_grid_ts=arguments.get("second_per_grid_ts"),
            mm_token_type_ids=arguments.get("mm_token_type_ids"),
        )
        if found is not None:
            return found, True
        # Without mm_token_type_ids the model counts all tokens in one row.
        if for_generate and mask is not None:
            row = (mask.long().cumsum(-1) - 1).clamp(min=0)
        else:
            row = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return row.expand(3, *ids.shape), False


def _by_name(signature: inspect.Signature, args: tuple, kwargs: dict) -> dict[str, Any]:
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    arguments.update(arguments.pop("kwargs", {}))
    return arguments


def _has_pixels(arguments: dict[str, Any]) -> bool:
    if arguments.get("mm_encoder_outputs"):
        raise HiPruneError("mm_encoder_outputs: accepted are pixels, which HiPrune scores")
    return any(arguments.get(name) is not None for name in VISUAL_INPUTS[:2])
