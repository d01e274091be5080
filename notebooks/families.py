"""One model a family, and the tokens that HiPrune keeps of an image.

One model at a time is held in memory: three of the paper's need more than most machines have.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paths
import torch
from encoders import quiet

from hiprune import HiPruneConfig, TokenSelection, prune
from hiprune.config import FAMILIES
from hiprune.figures.token_grids import TokenGrid
from hiprune.show.checkpoints import TINY as TRAINED
from hiprune.show.checkpoints import Checkpoint, find_checkpoint
from scripts.benchmarks import BENCHMARKS

if TYPE_CHECKING:
    from PIL.Image import Image

OURS = {"llava": "llava_hf", "llava_next": "llava_next_hf", "qwen2_5_vl": "qwen2_5_vl"}
TITLES = {"llava": "LLaVA-1.5", "llava_next": "LLaVA-NeXT", "qwen2_5_vl": "Qwen2.5-VL"}


@dataclass(frozen=True)
class Model:
    """A model, loaded when it is first asked and again after another one was, and its budgets.

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
    checkpoint: Checkpoint
    device: str

    def select(
        self, image: Image, retention: int | float, alpha: float
    ) -> tuple[TokenSelection, list[TokenGrid]]:
        """What is kept of an image, and where its tokens lie."""
        from hiprune.models.pictures import picture

        model, processor = _loaded(self.checkpoint, self.device)
        made = picture(model, processor, image)
        pixels = made.pixels.to(model.device, model.dtype)
        config = HiPruneConfig(retention, alpha, self.object_layer)
        with prune(model, config) as pruned:
            pruned.encode_images(pixels, made.sizes)
            return pruned.selections[0], made.grids


def find_models(names: Sequence[str] | None = None, device: str | None = None) -> list[Model]:
    """The models of these names; else the paper's; else the small trained ones. Prints which.

    The paper's are taken out of the hub's local cache alone: each is 7 to 15 GB. A line each says
    which are not there; whatever else keeps one from loading is an error, once it is asked.

    Args:
        names: of the model hub, folders, or ``tiny-llava``, ``tiny-llava-next``, ``tiny-qwen``.
        device: a GPU, if there is one, unless given.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    quiet()
    found = [_model(name, name, device) for name in names] if names else _of_the_paper(device)
    if not found:
        print("Used instead:")
        found = [_model(name, name, device) for name in TRAINED]
    for model in found:
        print(f"- {model.name}: object layer {model.object_layer}, N' = {model.budgets}")
    return found


_held: dict[tuple[str, str], tuple[Any, Any]] = {}  # the one model that is loaded


def _loaded(checkpoint: Checkpoint, device: str) -> tuple[Any, Any]:
    """The model and its image processor; the one before it is let go first."""
    key = (str(checkpoint.path), device)
    if key not in _held:
        _held.clear()
        gc.collect()
        _held[key] = checkpoint.load(device)
    return _held[key]


def _model(name: str, path: str, device: str) -> Model:
    checkpoint = find_checkpoint(path)
    benchmark, tiny = BENCHMARKS[OURS[checkpoint.family]], checkpoint.tiny
    if tiny:
        name = f"trained {TITLES[checkpoint.family]} of this repository"
        scenes, budgets, layer = checkpoint.family, benchmark.tiny.retentions, tiny.object_layer
    else:
        scenes, budgets = None, benchmark.retentions
        layer = FAMILIES[checkpoint.family].object_layer
    return Model(name, scenes, budgets, layer, checkpoint, device)


def _of_the_paper(device: str) -> list[Model]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    names = [BENCHMARKS[key].checkpoint for key in OURS.values()]
    if paths.TINY:
        print(f"The paper's checkpoints ({', '.join(names)}): not asked for with --tiny.")
        return []
    found = []
    for name in names:
        try:
            folder = snapshot_download(name, local_files_only=True)
        except LocalEntryNotFoundError:
            print(f"The paper's {name} is left out: not in the hub's local cache")
            continue
        missing = _missing(Path(folder))
        if missing:
            print(f"The paper's {name} is left out: the hub's local cache lacks its {missing[0]}")
        else:
            found.append(_model(name, folder, device))
    return found


def _missing(folder: Path) -> list[str]:
    """Files that a checkpoint needs and its folder lacks: a download may have been cut off."""
    index = folder / "model.safetensors.index.json"
    weights = ["model.safetensors"]
    if index.is_file():
        weights = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    needed = ("config.json", "preprocessor_config.json", *weights)
    return [name for name in needed if not (folder / name).is_file()]
