"""What an lmms-eval run says of itself in its results file: settings, versions, tokens that ran."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import torch
from loguru import logger

from hiprune.handle import PruneHandle
from hiprune.machine import hardware, short_name, versions

RUN = "HIPRUNE_RUN"


class RunRecord:
    """Counts the visual tokens that reach the language model, and describes the run.

    Args:
        handle: of the patched model; None for an unpruned run.
        family: of the model.
        details: anything else that belongs into the record (dtype, attention kernel, ...).

    Where a program of this repository started the run, the record also holds what that knows to
    decide a score (``HIPRUNE_RUN``: seed, hash of the lock, ...): runs that differ in it are never
    in one table.
    """

    def __init__(self, handle: PruneHandle | None, family: str, details: dict[str, Any]) -> None:
        config = handle.config if handle else None
        self.settings = {
            "pruned": handle is not None,
            "family": family,
            "retention": config.retention if config else None,  # N'
            "alpha": config.alpha if config else None,
            "object_layer": config.object_layer if config else None,  # l
            # What differs from the paper's method: {"method": "random", "seed": 1}, say.
            "variant": config.variant() if config else {},
            **details,
        }
        if RUN in os.environ:
            self.settings["run"] = json.loads(os.environ[RUN])
        self.images = self.visual_tokens = 0  # of this process
        self.total = (0, 0)  # of all
        self._unread = 0
        # Of lmms-eval's MMBench, which asks a GPT model three times to read an answer and says so,
        # and then draws a letter.
        logger.add(self._count_unread, format="{message}", filter="lmms_eval.tasks.mmbench")

    def count(self, images: int, visual_tokens: int) -> None:
        """Add prompts that held this many images and, in the language model, visual tokens."""
        self.images += images
        self.visual_tokens += visual_tokens

    def _count_unread(self, message: str) -> None:
        self._unread += "GPT API failed to answer" in message

    def gather(self, accelerator: Any) -> None:
        """Sum the counts over all processes. Every process has to call it."""
        counts = torch.tensor([[self.images, self.visual_tokens]], device=accelerator.device)
        self.total = tuple(accelerator.gather(counts).sum(dim=0).tolist())

    def as_dict(self) -> dict[str, Any]:
        images, visual_tokens = self.total
        return {
            **self.settings,
            "images": images,
            "visual_tokens_per_image": visual_tokens / images if images else None,
            **({"letters_drawn": self._unread // 3} if self._unread else {}),
            "versions": versions(),
            "machine": _machine(),
        }


def state_in_results(record: Callable[[], dict[str, Any]]) -> None:
    """Have the next results file that lmms-eval writes hold ``record()`` under "hiprune".

    lmms-eval has no place for what a model says of itself; its tracker's method is wrapped for
    that one call.
    """
    from lmms_eval.loggers import EvaluationTracker

    original = EvaluationTracker.save_results_aggregated

    def save(self, results: dict, *args, **kwargs) -> None:
        EvaluationTracker.save_results_aggregated = original
        results["hiprune"] = record()
        original(self, results, *args, **kwargs)

    EvaluationTracker.save_results_aggregated = save


def _machine() -> str:
    if not torch.cuda.is_available():
        return short_name(hardware(torch.device("cpu")))
    count = torch.cuda.device_count()
    gpu = short_name(hardware(torch.device("cuda", torch.cuda.current_device())))
    return f"{count} x {gpu}" if count > 1 else gpu
