"""One model a family, and the tokens that HiPrune keeps of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import paths
import torch
from benchmarks import BENCHMARKS
from checkpoints import TINY as TRAINED
from checkpoints import find_checkpoint
from encoders import quiet

from hiprune import HiPruneConfig, HiPruneError, TokenSelection, prune
from hiprune.config import FAMILIES
from hiprune.token_grids import TokenGrid

if TYPE_CHECKING:
    from PIL.Image import Image

OURS = {"llava": "llava_hf", "llava_next": "llava_next_hf", "qwen2_5_vl": "qwen2_5_vl"}
TITLES = {"llava": "LLaVA-1.5", "llava_next": "LLaVA-NeXT", "qwen2_5_vl": "Qwen2.5-VL"}


@dataclass(frozen=True)
class Loaded:
    """A model and its budgets.

    Attributes:
        name: for captions.
        scenes: the family whose generated scenes it was trained on; None for released weights.
        budgets: the paper's three, or their shares of a small model's tokens.
        object_layer: l.
    """

    name: str
    scenes: str | None
    budgets: tuple[int | float, ...]
    object_layer: int
    model: Any
    processor: Any

    def select(
        self, image: Image, retention: int | float, alpha: float
    ) -> tuple[TokenSelection, list[TokenGrid]]:
        """What is kept of an image, and where its tokens lie."""
        from hiprune.models.pictures import picture

        made = picture(self.model, self.processor, image)
        pixels = made.pixels.to(self.model.device, self.model.dtype)
        config = HiPruneConfig(retention, alpha, self.object_layer)
        with prune(self.model, config) as pruned:
            pruned.encode_images(pixels, made.sizes)
            return pruned.selections[0], made.grids


def find_models(names: Sequence[str] | None = None, device: str | None = None) -> list[Loaded]:
    """The models of these names; else the paper's; else the small trained ones. Prints which.

    The paper's are taken out of the hub's local cache alone: each is 7 to 15 GB.

    Args:
        names: of the model hub, folders, or ``tiny-llava``, ``tiny-llava-next``, ``tiny-qwen``.
        device: a GPU, if there is one, unless given.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    quiet()
    found = [_load(name, name, device) for name in names] if names else _of_the_paper(device)
    if not found:
        reason = "not asked for with --tiny" if paths.TINY else "not in the hub's local cache"
        listed = ", ".join(BENCHMARKS[key].checkpoint for key in OURS.values())
        print(f"The paper's checkpoints ({listed}): {reason}. Used instead:")
        found = [_load(name, name, device) for name in TRAINED]
    for loaded in found:
        print(f"- {loaded.name}: object layer {loaded.object_layer}, N' = {loaded.budgets}")
    return found


def _load(name: str, path: str, device: str) -> Loaded:
    checkpoint = find_checkpoint(path)
    model, processor = checkpoint.load(device)
    benchmark, tiny = BENCHMARKS[OURS[checkpoint.family]], checkpoint.tiny
    if tiny:
        name = f"trained {TITLES[checkpoint.family]} of this repository"
        scenes, budgets, layer = checkpoint.family, benchmark.tiny.retentions, tiny.object_layer
    else:
        scenes, budgets = None, benchmark.retentions
        layer = FAMILIES[checkpoint.family].object_layer
    return Loaded(name, scenes, budgets, layer, model, processor)


def _of_the_paper(device: str) -> list[Loaded]:
    from huggingface_hub import snapshot_download

    found = []
    for key in () if paths.TINY else OURS.values():
        name = BENCHMARKS[key].checkpoint
        try:
            found.append(_load(name, snapshot_download(name, local_files_only=True), device))
        except (OSError, HiPruneError):  # not there, or not the whole of it
            continue
    return found
