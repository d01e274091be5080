"""One run of a patched CLIP tower: what it is looked at for, the choice of tokens, what is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from hiprune.models.clip_layer import gather, halves
from hiprune.models.tokens import Tokens
from hiprune.models.views import in_order
from hiprune.models.words import words_of
from torch import Tensor

from hiprune.capture import Recording
from hiprune.handle import STATE
from hiprune.methods import Images
from hiprune.selection import TokenSelection

# What of a layer answers to a method's needs; and those that the tower's tokens answer to.
LOOKS = {
    "object_scores": "scores",
    "output_scores": "scores",
    "cls_attention": "cls_attention",
    "keys": "keys",
}
TOKENS = frozenset({"features", "hidden", "projected", "image_embeds"})


@dataclass
class Pass:
    """What one run of the tower works with.

    Attributes:
        budgets: N' of a view of each image.
        unseen: may what nobody looks at run otherwise?
        layer_norm: of the tower, after its last layer; for comparing tokens with a text.
        selections: one an image, whose rows are its views, once they are chosen.
        hidden: (sum of V, E+patches, C_v) of the output layer, where the method looks at it.
        states: (1, sum of P, C_v) of the output layer, where it gives kept tokens alone.
    """

    tower: Any
    tokens: Tokens
    views: Sequence[int]
    budgets: Sequence[int]
    columns: Sequence[int | None]
    recording: Recording
    unseen: bool
    layer_norm: Any
    selections: list[TokenSelection] | None = None
    hidden: Tensor | None = None
    states: Tensor | None = None

    @property
    def short(self) -> bool:
        """Does the tower end with the output layer?"""
        # An object layer beyond the output layer is legal in the paper's ablation.
        return self.unseen and max(self.tower.looks, default=0) <= self.tower.output_layer

    @property
    def cuts(self) -> bool:
        """Does the output layer give kept tokens alone?"""
        return self.short and not self.tower.reads_tokens

    def projected(
        self, features: Tensor, projector: Callable[[Tensor], Tensor], hidden: Tensor | None = None
    ) -> list[Tensor]:
        """What the tower gave -> the kept tokens of each image, projected, (N', C).

        Args:
            features: (sum of V, N, C_v); of a short pass what the tower's last layer gives.
            projector: sees kept tokens alone, unless the method looks at projected ones.
            hidden: (sum of V, 1+N, C_v), where the caller has it.
        """
        if self.cuts:
            kept = features[0].split([s.indices.numel() for s in self.selections])
        else:
            if self.short:
                features = features[:, 1:]  # CLS is dropped
            hidden, tokens = self.hidden if hidden is None else hidden, features
            if "projected" in self.tower.method.needs:
                tokens = projector(features)  # (sum of V, N, C)
            given = {"features": features, "hidden": hidden, "projected": tokens}
            if self.tower.reads_text:
                found = self.tower.text.image_embeds(self.layer_norm, features)
                given["image_embeds"] = found  # (sum of V, N, E)
            kept = self._take(
                lambda rows, at: gather(tokens[rows], at - self.tokens.extra), tokens.device, given
            )
            if "projected" in self.tower.method.needs:
                return kept
        projected = projector(torch.cat(kept))  # (sum of N', C)
        return list(projected.split([len(image) for image in kept]))

    def kept(self, states: Tensor) -> list[Tensor]:
        """(sum of V, patches, C_v), or (1, sum of P, C_v) if cut -> (P, C_v) of each image.

        For methods that need attention alone. P is N', but where extra tokens are handed on or a
        token has several patches. In front of the patches the extra tokens may stand.
        """
        tokens = self.tokens
        if self.cuts:
            return list(states[0].split([tokens.handed_on(s) for s in self.selections]))
        return self._take(lambda rows, at: tokens.take(states[rows], at), states.device, {})

    def cut(self, layer: Any, hidden: Tensor) -> Tensor:
        """The output layer: (sum of V, E+patches, C_v) -> (1, sum of P, C_v)."""
        tower = self.tower
        found, rest = halves(layer, hidden, tower.looks.get(tower.output_layer))
        if found is not None:
            self.recording.add(tower.output_layer, found)
        self.states = torch.cat(self._take(rest, hidden.device, {})).unsqueeze(0)
        return self.states

    def _take(
        self,
        features: Callable[[slice, Tensor], Tensor],
        device: Any,
        given: dict[str, Tensor | None],
    ) -> list[Tensor]:
        """Choose, and take the features of what is kept; see :func:`halves` for these.

        Args:
            features: takes rows of the batch, and (V, P) places among E + patches.
            given: what the method may need but what layers were looked at for, (sum of V, ...).
        """
        tower, tokens, found = self.tower, self.tokens, self.recording.found()
        needed = {}
        for need in tower.method.needs:
            if need in LOOKS:
                object_layer = need == "object_scores"
                number = tower.config.object_layer if object_layer else tower.output_layer
                seen = found[number][LOOKS[need]].to(device)  # layers may lie on several
                needed[need] = seen if need == "keys" else tokens.scores(seen)
            elif need != "text_embeds":
                needed[need] = given[need]

        def select(rows: slice, budget: int, number: int, image: int = 0) -> TokenSelection:
            device_ = torch.device(device)
            images = Images(number, tokens.count, tokens.columns, budget, device_)
            own = {need: x[rows] for need, x in needed.items()}
            if tower.reads_text:
                own["text_embeds"] = words_of(image, tower.method.name).to(device)
            return tower.method(images, **own)

        self.selections, kept = [], []
        # One budget and no text: all images at once, which takes as few launches as one does.
        together = len(set(self.budgets)) == 1 and not tower.reads_text
        if together:
            chosen = select(slice(None), self.budgets[0], sum(self.views))
            found = features(slice(None), tokens.places(chosen.indices))  # (sum of V, P/V, C_v)
        start = 0
        each = enumerate(zip(self.views, self.budgets, self.columns, strict=True))
        for image, (count, budget, columns) in each:
            rows = slice(start, start := start + count)
            if together:
                own, its = found[rows], chosen[rows]
            else:
                its = select(rows, budget, count, image)
                own = features(rows, tokens.places(its.indices))  # (V, P/V, C_v)
            kept.append(in_order(own, its, tokens.columns, columns))
            self.selections.append(_detached(its))
        return kept


PASS: ContextVar[Pass | None] = ContextVar("hiprune_clip_pass", default=None)


def pass_of(module: Any) -> Pass | None:
    """The pass that runs, if it is one of this module's tower."""
    found = PASS.get()
    return found if found is not None and found.tower is vars(module)[STATE] else None


def _detached(chosen: TokenSelection) -> TokenSelection:
    """For ``selections``, which outlive the pass."""
    return chosen if chosen.merged is None else replace(chosen, merged=chosen.merged.detach())
