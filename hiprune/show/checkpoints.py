"""Models that a user names: the repository's tiny ones, a folder, or a name on the model hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiprune.errors import HiPruneError
from hiprune.lmms.checkpoint import Description, describe
from hiprune.models.transformers_version import require_transformers

ASSETS = Path(__file__).resolve().parents[2] / "assets"  # of a clone; a wheel has none


@dataclass(frozen=True)
class Tiny:
    """A small trained model.

    Attributes:
        asset: its folder in ASSETS.
        retention: a third of its tokens.
        object_layer: l, as deep as the paper's.
    """

    asset: str
    retention: str
    object_layer: int


TINY = {
    "tiny-llava": Tiny("llava-1.5-tiny", "48", 3),
    "tiny-llava-next": Tiny("llava-v1.6-tiny", "240", 3),
    "tiny-qwen": Tiny("qwen2.5-vl-tiny", "0.334", 4),
}
ALIASES = {"tiny": "tiny-llava"}
# lmms-eval's limits of an image for Qwen2.5-VL, which the processor's own exceed on both sides.
PIXELS = {"min_pixels": 256 * 28 * 28, "max_pixels": 1605632}


@dataclass(frozen=True)
class Checkpoint:
    """A model that is there, not loaded yet.

    Attributes:
        name: as the user gave it.
        path: folder, or name on the hub.
        description: family and size.
        tiny: its settings, if it is one of the repository's.
    """

    name: str
    path: str
    description: Description
    tiny: Tiny | None

    @property
    def family(self) -> str:
        """Its name in hiprune.config.FAMILIES."""
        return self.description.family.name

    def load(self, device: str = "cpu") -> tuple[Any, Any]:
        """The model and its image processor: see :meth:`load_whole`."""
        model, processor = self.load_whole(device)
        return model, processor.image_processor

    def load_whole(self, device: str = "cpu") -> tuple[Any, Any]:
        """The model and its processor: Qwen2.5-VL's with PIXELS, the tiny one's as it is.

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
            return model, transformers.AutoProcessor.from_pretrained(self.path, **limits)
        except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
            raise HiPruneError(f"--model {self.name} on {device}: {error}") from error


def find_checkpoint(name: str) -> Checkpoint:
    """The checkpoint of that name, by its configuration alone.

    Raises:
        HiPruneError: no such checkpoint, one of another family, or another transformers.
    """
    require_transformers()
    tiny = TINY.get(ALIASES.get(name, name))
    path = str(ASSETS / tiny.asset) if tiny else name
    if tiny and not ASSETS.is_dir():
        raise HiPruneError(
            f"--model {name}: no {ASSETS}, which a clone of the repository has; expected a folder "
            "or a name on the model hub (llava-hf/*, Qwen/*)"
        )
    try:
        found = describe(path)
    except HiPruneError as error:
        reason = str(error).removeprefix(f"checkpoint={name!r}: ")
        names = ", ".join((*ALIASES, *TINY))
        raise HiPruneError(f"--model {name}: {reason} (llava-hf/*, Qwen/*), or {names}") from error
    return Checkpoint(name, path, found, tiny)
