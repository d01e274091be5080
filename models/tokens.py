"""Tokens: what the visual tokens of a view are made of, among the states of a tower's layer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hiprune.models.clip_layer import gather
from torch import Tensor

from hiprune.selection import TokenSelection


@dataclass(frozen=True, eq=False)
class Tokens:
    """The N tokens of a view. A layer's states are E extra tokens (CLS), then a view's patches.

    Attributes:
        patches: of a view.
        extra: E.
        keeps_extra: are extra tokens handed on, in front of a view's kept ones? They are never
            pruned, and not counted in N'.
        groups: (N, g) the patches that each token is made of, both in raster order; None: a patch
            is a token.
        weights: (N, g) what each of these counts; None: all the same.
    """

    patches: int
    extra: int = 1
    keeps_extra: bool = False
    groups: Tensor | None = None
    weights: Tensor | None = None
    _tables: dict[tuple[str, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def count(self) -> int:
        """N."""
        return self.patches if self.groups is None else len(self.groups)

    @property
    def columns(self) -> int:
        """c; N = c * c."""
        return int(self.count**0.5)

    @property
    def plain(self) -> bool:
        """Are they CLIP's: a patch each, after CLS, which is dropped?"""
        return self.groups is None and self.extra == 1 and not self.keeps_extra

    def scores(self, scores: Tensor) -> Tensor:
        """(..., patches) -> (..., N), the mean of each token's patches."""
        if self.groups is None:
            return scores
        scores = scores[..., self.table("groups", scores.device)]  # (..., N, g)
        if self.weights is None:
            return scores.mean(dim=-1)
        return (scores * self.table("weights", scores.device).to(scores.dtype)).sum(dim=-1)

    def places(self, kept: Tensor) -> Tensor:
        """(V, N') kept tokens -> (V, P) places, among E + patches, of the states to hand on."""
        if self.groups is not None:
            kept = self.table("groups", kept.device)[kept].flatten(1)  # (V, g N')
        found = kept + self.extra
        if not self.keeps_extra:
            return found
        extra = torch.arange(self.extra, device=kept.device).expand(len(kept), -1)
        return torch.cat([extra, found], dim=1)

    def table(self, name: str, device: torch.device) -> Tensor:
        """``groups`` or ``weights`` on a device: copied there once, for a copy waits for it."""
        if (name, device) not in self._tables:
            with torch.inference_mode(False):  # a later pass may be one of training
                self._tables[name, device] = getattr(self, name).to(device)
        return self._tables[name, device]

    def handed_on(self, selection: TokenSelection) -> int:
        """P of an image."""
        views, kept = selection.indices.shape
        size = 1 if self.groups is None else self.groups.shape[1]
        return views * (kept * size + (self.extra if self.keeps_extra else 0))

    def take(self, states: Tensor, places: Tensor) -> Tensor:
        """(V, patches, C_v), with E extra tokens in front or without, -> (V, P, C_v)."""
        return gather(states, places - (self.extra + self.patches - states.shape[1]))
