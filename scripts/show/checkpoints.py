"""Models that a user names: the repository's tiny ones, a folder, or a name on the model hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiprune.models.transformers_version import require_transformers

from hiprune import HiPruneError
from hiprune.config import FAMILIES
from scripts.benchmarks import ASSETS, LLAVA_NEXT_TINY, LLAVA_TINY, QWEN_TINY, Tiny

TINY = {"tiny-llava": LLAVA_TINY, "tiny-llava-next": LLAVA_NEXT_TINY, "tiny-qwen": QWEN_TINY}
ALIASES = {"tiny": "tiny-llava"}
# lmms-eval's limits of an image for Qwen2.5-VL, which the processor's own exceed on both sides.
PIXELS = {"min_pixels": 256 * 28 * 28, "max_pixels": 1605632}


@dataclass(frozen=True)
class Checkpoint:
    """A model that is there, not loaded yet.

    Attributes:
        name: as the user gave it.
        path: folder, or name on the hub.
        family: a name in hiprune.config.FAMILIES.
        layers: of its vision tower.
        tiny: its settings, if it is one of the repository's.
    """

    name: str
    path: Path | str
    family: str
    layers: int
    tiny: Tiny | None

    def load(self, device: str = "cpu") -> tuple[Any, Any]:
        """The model and its image processor: Qwen2.5-VL's with PIXELS, the tiny one's as it is.

        Raises:
            HiPruneError: weights that cannot be read, or no such device.
        """
        import transformers
        from safetensors import SafetensorError

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        load = transformers.AutoModelForImageTextToText.from_pretrained
        limits = PIXELS if self.family == "qwen2_5_vl" and not self.tiny else {}
        try:
            model = load(self.path, dtype="auto").eval()
            # Half precision is slow on a CPU, or is not there.
            model = model.float() if device == "cpu" else model.to(device)
            processor = transformers.AutoProcessor.from_pretrained(self.path, **limits)
            return model, processor.image_processor
        except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
            raise HiPruneError(f"--model {self.name} on {device}: {error}") from error


def find_checkpoint(name: str) -> Checkpoint:
    """The checkpoint of that name, by its configuration alone.

    Raises:
        HiPruneError: no such checkpoint, one of another family, or another transformers.
    """
    require_transformers()
    import transformers

    names = (*ALIASES, *TINY)
    tiny = TINY.get(ALIASES.get(name, name))
    path = ASSETS / tiny.asset if tiny else name
    expected = (
        f"expected one of {', '.join(names)}, or a folder or hub name of a checkpoint in "
        f"transformers' format (llava-hf/*, Qwen/*) of {', '.join(FAMILIES)}"
    )
    try:
        config = transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise HiPruneError(f"--model {name}: {reason[0]}; {expected}") from error
    # Families bear the names of transformers' model types.
    family = config.model_type.removesuffix("_moe")
    if family not in FAMILIES:
        raise HiPruneError(f"--model {name}: its model_type is {family!r}; {expected}")
    vision = config.vision_config
    layers = vision.depth if hasattr(vision, "depth") else vision.num_hidden_layers
    return Checkpoint(name, path, family, layers, tiny)
