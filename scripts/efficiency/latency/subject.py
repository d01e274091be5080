"""What is measured: how it was asked for, the package it is of, and the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hiprune.models.transformers_version import require_transformers

from hiprune import HiPruneError
from scripts.efficiency.architectures import Architecture
from scripts.efficiency.configs import has_llava_package

# The `llava` package reads checkpoints of its own format.
PACKAGE_CHECKPOINTS = {
    "llava-1.5-7b": "liuhaotian/llava-v1.5-7b",
    "llava-1.5-13b": "liuhaotian/llava-v1.5-13b",
    "llava-next-7b": "liuhaotian/llava-v1.6-vicuna-7b",
}


@dataclass(frozen=True)
class Request:
    """What to build, and how.

    Attributes:
        checkpoint: a folder or a hub id; None: random weights.
        one_layer: a language model of one layer, for measurements that do not run it.
    """

    architecture: Architecture
    package: str
    checkpoint: str | None
    device: torch.device
    dtype: torch.dtype
    attention: str
    seed: int
    one_layer: bool = False


@dataclass(frozen=True)
class Subject:
    """A model that is ready to run; ``reader`` is its processor or tokenizer, if it has one."""

    request: Request
    model: Any
    reader: Any = None

    @property
    def family(self) -> str:
        return self.request.architecture.family

    @property
    def is_llava_package(self) -> bool:
        return self.request.package == "llava"


def language_model(subject: Subject) -> Any:
    model = subject.model
    return model.get_model() if subject.is_llava_package else model.model.language_model


def choose_package(asked: str | None, family: str) -> str:
    """ "transformers" or "llava": the one asked for, or the one that this environment has.

    Raises:
        HiPruneError: it is not here, or does not know the family.
    """
    package = asked or ("llava" if has_llava_package() else "transformers")
    if package == "llava" and not has_llava_package():
        raise HiPruneError(
            "package='llava': it is not importable here; expected an environment that has it "
            "(setup_llava.sh makes one), or --package transformers"
        )
    if package == "llava" and family not in ("llava", "llava_next"):
        raise HiPruneError(
            f"model: {family} with the `llava` package; expected LLaVA-1.5 or LLaVA-NeXT here. "
            f"{family} needs the environment of setup_qwen.sh"
        )
    if package == "transformers":
        try:
            require_transformers()
        except HiPruneError as error:
            raise HiPruneError(f"package='transformers': {error}") from error
    return package


def default_checkpoint(architecture: Architecture, package: str) -> str | None:
    """Its id on the hub, in the package's format; None for a tiny model."""
    if package == "llava":
        return PACKAGE_CHECKPOINTS.get(architecture.name)
    return architecture.checkpoint or None
