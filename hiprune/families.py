"""Families of models: the variable of the budget, and the defaults that each has."""

from __future__ import annotations

from dataclasses import dataclass

from hiprune.errors import HiPruneError


@dataclass(frozen=True)
class Family:
    """Defaults of one model family: the paper's (section "Experiments"), or ours as deep and large.

    Those of LLaVA-1.5, LLaVA-NeXT and Qwen2.5-VL are the paper's.
    """

    name: str
    retention_variable: str
    retention: int | float  # the default budget: tokens (int) or share of the image's (float)
    max_retention: int | float  # an int beside a share: the variable takes either
    object_layer: int  # l, counted from 1
    encoder_layers: int

    def layer_of(self, layers: int | None) -> int:
        """The default l of a tower with so many layers; None: as many as ``encoder_layers``.

        As deep as the family's: l / layers = 9 / 24 or 16 / 32, rounded half up, at least 1.
        """
        if layers is None:
            return self.object_layer
        whole = self.encoder_layers
        return max(1, (2 * self.object_layer * layers + whole) // (2 * whole))


# Name -> family: the registry of models fills it (hiprune.models.registry.register).
FAMILIES: dict[str, Family] = {}


def family_of(name: str) -> Family:
    """
    Raises:
        HiPruneError: a name that no adapter has registered.
    """
    if name not in FAMILIES:
        raise HiPruneError(f"family={name!r}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
