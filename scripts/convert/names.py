"""One table of the weights' names, for both directions, and how a name is exchanged by it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

COMPUTED = ("position_ids", "rotary_emb.inv_freq")  # not learned: left out


class Part(NamedTuple):
    """How the names of a part of a LLaVA on Llama begin.

    Attributes:
        package: in the `llava` package's checkpoints, as they are written and have been.
        modules: in transformers' modules.
        files: in transformers' checkpoints, as 5 and 4 write them.
    """

    package: tuple[str, ...]
    modules: str
    files: tuple[str, ...]


TOWER = "model.vision_tower.vision_tower.vision_model."
PARTS = (
    Part(
        (TOWER, "model.vision_tower.vision_tower."),
        "model.vision_tower.",
        ("vision_tower.vision_model.", "vision_tower."),
    ),
    Part(
        ("model.mm_projector.0.",),
        "model.multi_modal_projector.linear_1.",
        ("multi_modal_projector.linear_1.",),
    ),
    Part(
        ("model.mm_projector.2.",),
        "model.multi_modal_projector.linear_2.",
        ("multi_modal_projector.linear_2.",),
    ),
    Part(("model.image_newline",), "model.image_newline", ("image_newline",)),
    Part(("lm_head.",), "lm_head.", ("language_model.lm_head.", "lm_head.")),
    Part(("model.",), "model.language_model.", ("language_model.model.", "language_model.")),
)


def of_package(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The `llava` package's names -> transformers' modules'."""
    return _renamed(weights, [(old, part.modules) for part in PARTS for old in part.package])


def of_files(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names in transformers' checkpoints -> the `llava` package's."""
    return _renamed(weights, [(old, part.package[0]) for part in PARTS for old in part.files])


def _renamed(weights: dict[str, Tensor], pairs: list[tuple[str, str]]) -> dict[str, Tensor]:
    """By the first beginning that fits.

    Raises:
        SystemExit: none does.
    """
    renamed = {}
    for name, weight in weights.items():
        if name.endswith(COMPUTED):
            continue
        old, new = next((pair for pair in pairs if name.startswith(pair[0])), (None, None))
        if old is None:
            raise SystemExit(f"{name}: not a weight of a LLaVA on Llama")
        renamed[new + name.removeprefix(old)] = weight
    return renamed
