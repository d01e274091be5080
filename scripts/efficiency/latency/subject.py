"""What is measured: how it was asked for, and the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from scripts.efficiency.architectures import Architecture


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
