"""Which registered family a checkpoint of transformers is of, by its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import hiprune.models  # noqa: F401 - fills the registry
from hiprune.config import FAMILIES, Family
from hiprune.errors import HiPruneError
from hiprune.models.registry import ADAPTERS, adapter_of


@dataclass(frozen=True)
class Description:
    """
    Attributes:
        family: with the paper's defaults, or the adapter's.
        layers: of the vision tower.
        tokens: the most of an image, where all have the same; None elsewhere.
    """

    family: Family
    layers: int | None
    tokens: int | None


def describe(checkpoint: str, revision: str = "main") -> Description:
    """Of a checkpoint on the hub, or a folder; no weights are read.

    Raises:
        HiPruneError: no configuration is found, or it is of no registered family.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint, revision=revision)
    except (OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        if Path(checkpoint).is_absolute() and not Path(checkpoint).exists():
            said = "no such folder"
        raise HiPruneError(
            f"checkpoint={checkpoint!r}: {said}; expected one of transformers, on the hub or a "
            "folder"
        ) from error
    with torch.device("meta"):
        model = model_class(config, checkpoint)(config)
    adapter = adapter_of(model)
    size = adapter.size(model)
    return Description(FAMILIES[adapter.family(model)], size.get("layers"), size.get("tokens"))


def model_class(config: Any, checkpoint: str) -> type:
    """The class of transformers that a configuration names, if an adapter knows it.

    Raises:
        HiPruneError: none does.
    """
    import transformers

    names = config.architectures or []
    for name in names:
        found = getattr(transformers, name, object)
        if any(("transformers", base.__name__) in ADAPTERS for base in found.__mro__):
            return found
    known = [name for package, name in ADAPTERS if package == "transformers"]
    raise HiPruneError(
        f"checkpoint={checkpoint!r}: architectures {', '.join(names) or 'not stated'}; expected "
        f"one of {', '.join(known)}"
    )
