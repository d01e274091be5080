"""What the models in vLLM share: how one stands in for vLLM's own, scores of a tower's layers, and
what an engine cannot have.

vLLM's towers are not transformers': queries and keys are seen where its attention kernel gets them,
rotated, and the rest of the tower runs as it is. The choice is that of the same classes that choose
in transformers (:mod:`hiprune.models.clip`, :mod:`hiprune.models.qwen_tower`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

from torch import Tensor
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)
from vllm.logger import init_logger
from vllm.model_executor.models.vision import is_vit_use_data_parallel
from vllm.multimodal import MULTIMODAL_REGISTRY

from hiprune.capture import AttentionCapture, Recording
from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError

logger = init_logger("vllm.hiprune")  # vLLM shows what lies below its own name


def stands_for(own: type, info: type[PrunedInfo], processor: type) -> Callable[[type], type]:
    """Of a class of ours: have vLLM make it, and its front end, in the place of its own model.

    Where nothing is set, model and front end are vLLM's own. One thing reaches them: our class's
    names of weights, without which vLLM does not find those of every checkpoint.

    Args:
        own: vLLM's model.
        info, processor: ours, for the front end: placeholders, and where they go.
    """
    theirs, known = own._processor_factory, info.known

    def make_info(ctx: Any) -> Any:
        return (theirs.info if known(ctx.get_hf_config()) is None else info)(ctx)

    def make_processor(found: Any, *args: Any, **kwargs: Any) -> Any:
        return (processor if isinstance(found, info) else theirs.processor)(found, *args, **kwargs)

    def new(cls: type, *, vllm_config: Any, prefix: str = "") -> Any:
        if known(vllm_config.model_config.hf_config) is not None:
            return object.__new__(cls)
        model = own(vllm_config=vllm_config, prefix=prefix)
        model.hf_to_vllm_mapper = cls.hf_to_vllm_mapper
        return model

    def wrap(cls: type) -> type:
        cls.__new__, cls.known = staticmethod(new), staticmethod(known)
        return MULTIMODAL_REGISTRY.register_processor(
            make_processor, info=make_info, dummy_inputs=theirs.dummy_inputs
        )(cls)

    return wrap


class PrunedInfo:
    """Of the front end, mixed ahead of vLLM's: what is known of the tower; all caches go by it."""

    @classmethod
    @abstractmethod
    def known(cls, hf_config: Any) -> Any | None:
        """A model's configuration -> what is known of its tower; None where nothing is set."""

    @cached_property
    def tower(self) -> Any:
        return self.known(self.get_hf_config())

    @property
    def model_id(self) -> str:
        return f"{super().model_id} {self.tower.config}"


class PrunedProcessor:
    """Of the front end, mixed ahead of vLLM's."""

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping, out_mm_kwargs: Any
    ) -> Any:
        check_request(hf_processor_mm_kwargs)
        return super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)


class TowerHooks:
    """Layers of a vLLM tower that are looked at, whenever a pass of their own runs.

    Args:
        capture: whose recordings then expect each of them to run exactly once.
        layers: number, from 1 -> the layer's MMEncoderAttention.
    """

    def __init__(self, capture: AttentionCapture, layers: Mapping[int, Any]) -> None:
        capture.numbers = tuple(layers)
        self._ranks = 1 if is_vit_use_data_parallel() else get_tensor_model_parallel_world_size()
        for number, attention in layers.items():
            attention.register_forward_pre_hook(_Hook(self, number), with_kwargs=True)

    @contextmanager
    def recording(self, recording: Recording, look: Callable[..., Any]) -> Iterator[None]:
        """One run of the tower.

        Args:
            recording: gets what is found.
            look: number of the layer, its attention, query and key -> what is found of them.
        """
        token = _RUN.set((self, recording, look))
        try:
            yield
        finally:
            _RUN.reset(token)

    def mean_of_ranks(self, scores: Tensor) -> Tensor:
        """Means over the heads of a rank -> over all, added in one order: all choose alike."""
        if self._ranks == 1:
            return scores
        return tensor_model_parallel_all_gather(scores[None].contiguous(), dim=0).mean(dim=0)

    def of_all_ranks(self, heads: Tensor) -> Tensor:
        """(B, H / ranks, N) -> (B, H, N)."""
        if self._ranks == 1:
            return heads
        return tensor_model_parallel_all_gather(heads.contiguous(), dim=1)


class _Hook:
    """Before a layer's attention kernel."""

    def __init__(self, hooks: TowerHooks, number: int) -> None:
        self.hooks, self.number = hooks, number

    def __call__(self, attention: Any, args: tuple, kwargs: dict) -> None:
        run = _RUN.get()
        if run is None or run[0] is not self.hooks:
            return
        named = dict(zip(("query", "key"), args, strict=False)) | kwargs
        run[1].add(self.number, run[2](self.number, attention, named["query"], named["key"]))


_RUN: ContextVar[tuple[TowerHooks, Recording, Callable] | None] = ContextVar(
    "hiprune_vllm_run", default=None
)


def check_engine(vllm_config: Any) -> None:
    """Raise, when the engine starts, for what HiPrune cannot be right with."""
    multimodal = vllm_config.model_config.multimodal_config
    stages = vllm_config.parallel_config.pipeline_parallel_size
    drafts = vllm_config.speculative_config
    found = {
        # Later stages, and a drafter, do not see the embeddings that positions are read off.
        f"pipeline_parallel_size={stages}": (stages > 1, "1"),
        "speculative_config": (drafts is not None, "none"),
        "compile_mm_encoder=True": (
            vllm_config.compilation_config.compile_mm_encoder,
            "False: hooks look at the tower's attention",
        ),
        "cudagraph_mm_encoder=True": (
            vllm_config.compilation_config.cudagraph_mm_encoder,
            "False: hooks look at the tower's attention",
        ),
        "enable_mm_embeds=True": (multimodal.enable_mm_embeds, "False: pixels are scored"),
        f"video_pruning_rate={multimodal.video_pruning_rate}": (
            multimodal.video_pruning_rate,
            "none",
        ),
    }
    for name, (wrong, expected) in found.items():
        if wrong:
            raise HiPruneError(f"{name} with HiPrune: expected {expected}")


def check_request(arguments: Mapping[str, Any]) -> None:
    """Raise for a budget of a request's own: N' is the engine's, which its caches go by."""
    for name in ("hiprune", "retention", "alpha", "object_layer"):
        if name in arguments:
            raise HiPruneError(
                f"mm_processor_kwargs: {name}={arguments[name]!r}: expected settings of the engine "
                "(HIPRUNE_* variables, or --hf-overrides), which are those of all requests"
            )


def log_settings(config: HiPruneConfig, layers: int) -> None:
    """What an engine prunes to, once: N', alpha, l, and what differs from the paper's method."""
    if get_tensor_model_parallel_rank() == 0:
        tokens = isinstance(config.retention, int)
        budget = f"{config.retention} tokens" if tokens else f"{config.retention:g} of the tokens"
        more = "".join(f", {name} {value}" for name, value in config.variant().items())
        logger.info(
            "HiPrune: N' = %s of an image, alpha = %g, object layer l = %d of %d%s",
            *(budget, config.alpha, config.object_layer, layers, more),
        )


def passes(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Images of so many tokens each -> groups of them that the tower sees at once.

    vLLM's scheduler counts kept tokens: what it hands over at once may be 1 / retention times as
    large as it thinks. A group has ``most`` tokens at most, or one image.
    """
    start = total = 0
    for number, size in enumerate(sizes):
        if number > start and total + size > most:
            yield slice(start, number)
            start, total = number, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))
