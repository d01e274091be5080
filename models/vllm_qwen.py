"""vLLM's Qwen-VL models: an image takes N' placeholders; kept tokens keep their M-RoPE positions.

Where on the grid kept tokens lie is known once the tower has run, long after positions are given
out. vLLM has a way for that, made for dropping tokens of videos: the embeddings bring positions
along in channels of their own, and the model is asked for the positions anew
(``SupportsMultiModalPruning``). What stands behind an image depends on its grid alone and is right
from the beginning.

The output layer and the merger run whole, and so do DeepStack's mergers, whose planes lie on the
embeddings' channels. Videos are refused: their frames' pruning is not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from hiprune.models.qwen_tower import MergedTower
from hiprune.models.views import flat_indices
from hiprune.models.vllm_plugin import require_needs, settings
from hiprune.models.vllm_tower import (
    PrunedInfo,
    PrunedProcessor,
    TowerHooks,
    check_engine,
    log_settings,
    passes,
)
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import supports_multimodal_pruning
from vllm.multimodal.processing import PromptReplacement, PromptUpdate
from vllm.platforms import current_platform

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.scores import received_attention_packed

KNOWN = frozenset({"object_scores", "output_scores", "projected"})
DIGIT = 256  # embeddings may be bfloat16, which counts exactly to 256


def merged_tower(hf_config: Any, family: str) -> MergedTower | None:
    """What is known of a model's tower, from its configuration; None where nothing is set."""
    described = SimpleNamespace(blocks=range(hf_config.vision_config.depth))

    def tower(config: HiPruneConfig) -> MergedTower:
        require_needs(config, KNOWN)
        return MergedTower(described, config)

    return settings(hf_config, family, tower, layers=len(described.blocks))


class Info(PrunedInfo):
    """
    Attributes:
        family: as HiPruneConfig.from_env names it.
    """

    family: str

    @classmethod
    def known(cls, hf_config: Any) -> MergedTower | None:
        return merged_tower(hf_config, cls.family)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None, "video": 0}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping:
        return {"image": self.get_max_image_tokens()}

    def get_num_image_tokens(self, **size: Any) -> int:
        return self.tower.kept(super().get_num_image_tokens(**size))


class Processor(PrunedProcessor):
    def _get_prompt_updates(self, *args: Any, **kwargs: Any) -> Sequence[PromptUpdate]:
        found = super()._get_prompt_updates(*args, **kwargs)
        image = next(update for update in found if update.modality == "image")

        def shorter(item: int) -> list[int]:
            tokens = image.replacement(item)
            return tokens[: self.info.tower.kept(len(tokens))]

        return [PromptReplacement("image", image.target, shorter)]


class Tower:
    """The model's own, which gives one channel more: 1 for the tokens to keep.

    In here, since with mm_encoder_tp_mode="data" a worker sees its own images alone.
    """

    def score(self, tower: MergedTower) -> None:
        """Turn it on, after the model has made its tower."""
        self.hiprune = tower
        scored = {number: self.blocks[number - 1].attn.attn for number in tower.scored.values()}
        self.hiprune_hooks = TowerHooks(tower.capture, scored)
        planes = len(getattr(self, "deepstack_visual_indexes", ()))
        self.hiprune_merged = self.out_hidden_size // (1 + planes)  # C of the merger alone
        self.out_hidden_size += 1

    def forward(self, x: Tensor, grid_thw: Any, **metadata: Any) -> Tensor:
        """(4 N, C_in) -> (N, C + 1) in raster order; C: of the merger and of DeepStack's."""
        grids = torch.as_tensor(grid_thw)
        with self.hiprune.passing(self, grids, self.device, looked_at=True) as run:
            # Not vLLM's, which are scaled for some kernels.
            frames = grids[:, 1:].prod(dim=1).repeat_interleave(grids[:, 0])  # 4 N of each
            whole = torch.nn.functional.pad(frames.cumsum(0), (1, 0))

            def look(number: int, attention: Any, query: Tensor, key: Tensor) -> Tensor:
                full = not run.windows or number - 1 in self.fullatt_block_indexes
                segments = whole if full else run.windows["cu_window_seqlens"]
                query, key = (x.flatten(0, 1).transpose(0, 1) for x in (query, key))  # (H, 4 N, D)
                found = received_attention_packed(query, key, segments, attention.scale)
                return self.hiprune_hooks.mean_of_ranks(found)  # (4 N,) in the tower's order

            with self.hiprune_hooks.recording(run.recording, look):
                out = super().forward(x, grid_thw, **metadata)
            merged = None
            if run.tower.reads_tokens:  # in the tower's order, as the scores
                merged = out[:, : self.hiprune_merged]
                merged = torch.empty_like(merged).index_copy_(0, run.raster, merged)
            run.choose(out.device, merged)
        keep = out.new_zeros(len(out), 1).index_fill_(0, flat_indices(run.selections), 1)
        return torch.cat([out, keep], dim=1)


class Pruned:
    """Of a worker, mixed ahead of vLLM's model.

    Attributes:
        tower_class: its tower's, with :class:`Tower` mixed in.
    """

    tower_class: type[Tower]
    supports_multimodal_pruning = True  # of Qwen2-VL vLLM prunes no videos

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        check_engine(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.hiprune = tower = self.known(self.config)
        self.hiprune_width = self.visual.out_hidden_size  # C
        self.visual.__class__ = self.tower_class
        self.visual.score(tower)
        self.hiprune_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        # The runner then asks for positions anew.
        self.multimodal_config.is_multimodal_pruning_enabled = _enabled
        self.is_multimodal_pruning_enabled = True
        if current_platform.is_cpu():
            _mend_cpu_runner()
        log_settings(tower.config, len(self.visual.blocks))

    def _process_image_input(self, image_input: Any) -> tuple[Tensor, ...]:
        """(N', C + 6) of each image."""
        if image_input["type"] != "pixel_values":
            raise HiPruneError("image_embeds: expected pixels, which HiPrune scores")
        grids = image_input["image_grid_thw"]
        patches = grids.prod(dim=1).tolist()
        pixels = image_input["pixel_values"].split(patches)
        found: list[Tensor] = []  # (N, C + 1) of each
        sizes = [number // self.visual.spatial_merge_size**2 for number in patches]
        for part in passes(sizes, self.hiprune_tokens):
            found += super()._process_image_input(
                type(image_input)(
                    type="pixel_values",
                    pixel_values=torch.cat(pixels[part]),
                    image_grid_thw=grids[part],
                )
            )
        return tuple(map(self._kept, found, grids.tolist()))

    def _kept(self, embeds: Tensor, grid: Sequence[int]) -> Tensor:
        """(N, C + 1) -> (N', C + 6): kept tokens, and where on the grid they lie."""
        rows, columns = (size // self.visual.spatial_merge_size for size in grid[1:])
        kept = embeds[:, -1].argsort(descending=True, stable=True)  # without a host read
        kept = kept[: self.hiprune.kept(rows * columns)].sort().values  # (N',)
        extent = torch.full_like(kept, max(rows, columns))
        place = torch.stack([kept // columns, kept % columns, extent], dim=1)  # (N', 3)
        digits = torch.cat([place // DIGIT, place % DIGIT], dim=1).to(embeds.dtype)
        return torch.cat([embeds[kept, :-1], digits], dim=1)

    def _postprocess_image_embeds_evs(self, embeds: Any, image_input: Any) -> Any:
        """vLLM's own way to bring positions along: they are there already."""
        return embeds

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """(3, T') positions of the unpruned prompt, those of an image's tokens being its first.

        Text behind an image goes on after the image's grid: right whatever is kept, also where the
        image itself comes out of the prefix cache and nobody asks again.
        """
        positions = torch.empty(len(input_tokens), dtype=torch.long)
        at = first = 0  # the next token, and its position
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            _, *grid = feature.data["image_grid_thw"].data.tolist()
            offset = feature.mm_position.offset
            positions[at:offset] = torch.arange(first, first + offset - at)
            first += offset - at
            at = offset + feature.mm_position.length
            positions[offset:at] = first
            first += max(grid) // self.visual.spatial_merge_size
        positions[at:] = torch.arange(first, first + len(input_tokens) - at)
        following = first + len(input_tokens) - at
        found = positions.repeat(3, 1)
        found.hiprune_following = following  # the runner keeps this very tensor
        return found, following - len(input_tokens)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """A chunk's embeddings without their places, and the prompt's positions with these in.

        Args:
            multimodal_embeddings: (n, C + 6) of the images' parts that are in the chunk.
            mrope_positions: (3, T') of the whole prompt, as known so far.
            num_computed_tokens: where the chunk begins.
        """
        length, device = len(input_ids), mrope_positions.device
        following = getattr(mrope_positions, "hiprune_following", None)
        if following is None:  # of a runner that copies: a prompt that ends in text tells
            following = int(mrope_positions[0, length - 1]) + 1
        positions = mrope_positions.clone()
        if multimodal_embeddings:
            ids = torch.as_tensor(input_ids, device=device)
            places = (ids == self.config.image_token_id).nonzero().flatten()
            start = int((places < num_computed_tokens).sum())
            found = torch.cat([each[:, self.hiprune_width :] for each in multimodal_embeddings])
            here = places[start : start + len(found)]
            digits = found.to(device).long()  # (n, 6)
            row, column, extent = (digits[:, :3] * DIGIT + digits[:, 3:]).unbind(dim=1)
            first = positions[0, here]  # an image has one frame
            positions[1, here] = first + row
            positions[2, here] = first + column
            if not hasattr(mrope_positions, "hiprune_following") and int(here[-1]) == length - 1:
                following = int(first[-1] + extent[-1])
        embeds = [each[:, : self.hiprune_width] for each in multimodal_embeddings]
        return embeds, positions, following - length


def _enabled() -> bool:
    return True


def _mend_cpu_runner() -> None:
    """Have the CPU runner see that the model prunes: its load_model does not look (0.32, 0.33)."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    name = "is_multimodal_pruning_enabled"

    def look(runner: Any) -> bool:
        model, config = getattr(runner, "model", None), runner.model_config.multimodal_config
        prunes = config is not None and config.is_multimodal_pruning_enabled()
        return prunes and supports_multimodal_pruning(model)

    if not isinstance(vars(CPUModelRunner).get(name), property):
        # What its base sets, False, is passed over.
        setattr(CPUModelRunner, name, property(look, lambda runner, value: None))
