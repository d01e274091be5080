"""A CLIP-like tower (CLIP, SigLIP, InternViT), scored as it runs, and the choice of tokens.

An image is one view (LLaVA-1.5) or several (LLaVA-NeXT: a base view, then a grid of them; InternVL:
tiles). A layer sees E extra tokens (CLS; none in SigLIP), then the patches of a view. The tower
runs as its own modules, of transformers 4.37 or 5. Modifications, on one instance, until the
handle's remove() and only within a pass that drops tokens and that nobody looks into:
- the output layer runs its second half for the kept tokens alone, which it gives as (1, sum of P,
  C_v), and the layers after it hand them on;
- transformers 4.37's attention, which knows eager alone, is computed by torch's SDPA.
Where somebody looks (hooks on what would be skipped, gradients, attentions or hidden states that
are asked for, compiled modules) the tower runs as it is, and the kept tokens are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hiprune.models.clip_layer import (
    drops_out,
    fused_attention,
    halves,
    layers_of,
    part,
    patch_columns,
    score,
    transformer_of,
)
from hiprune.models.tokens import Tokens
from hiprune.models.views import merged_order
from torch import Tensor

from hiprune.capture import AttentionCapture, Recording, ScoredLayer, observed
from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import STATE, Part, PruneHandle, overridden
from hiprune.methods import Images, method_of
from hiprune.selection import TokenSelection


class ClipTower:
    """What is known of one patched model's tower; it holds no module.

    Args:
        vision: transformers' CLIPVisionModel, SiglipVisionModel or InternVLVisionModel.
        select_layer: index into the tower's hidden states that the features come from; hidden
            state k of a tower with L layers is the output of layer k, k = -1 that of layer L.
        config: with the family's defaults filled in.
        max_views: the most views of an image, the base view included; None: as many as there are.
        tokens: what a view's are made of; None: CLIP's, a patch each, after CLS.
        counted_views: the views that count for the budget of an image that has more; None: all.

    Raises:
        HiPruneError: a layer or a budget that this tower cannot have.
    """

    def __init__(
        self,
        vision: Any,
        select_layer: int,
        config: HiPruneConfig,
        max_views: int | None,
        tokens: Tokens | None = None,
        counted_views: int | None = None,
    ) -> None:
        n_layers = len(layers_of(vision))
        self.config = config
        self.tokens = Tokens(patch_columns(vision) ** 2) if tokens is None else tokens
        self.columns = self.tokens.columns  # c; N = c * c
        self.counted_views = counted_views
        self.output_layer = select_layer % (n_layers + 1)
        # Whose attention counts: every token's, or that of CLS, the first, alone.
        self.scored_queries = slice(0, 1) if config.uses_cls else slice(None)
        self.tuples = transformer_of(vision) is not vision  # layers of transformers 4 give these
        self.choose = method_of(config)
        self.capture = AttentionCapture()
        if self.output_layer == 0:
            raise HiPruneError(
                f"vision select layer {select_layer}: the features are the embeddings; expected "
                "the output of a layer"
            )
        if config.uses_cls and not self.tokens.extra:
            name = "method" if config.method == "cls" else "score"
            raise HiPruneError(
                f"{name}='cls': this model's vision tower has no CLS token; expected another {name}"
            )
        if config.object_layer > n_layers:
            raise HiPruneError(
                f"object_layer={config.object_layer}: expected 1 to {n_layers}, the layers of "
                "this model's vision tower"
            )
        if max_views is None or not isinstance(config.retention, int):
            return
        most = max_views * self.tokens.count
        if not max_views <= config.retention <= most:
            what = f"{max_views} views of {self.tokens.count}" if max_views > 1 else "one view"
            raise HiPruneError(
                f"retention={config.retention}: expected {max_views} to {most} tokens per image "
                f"({what} in this model)"
            )

    def patch(self, handle: PruneHandle, vision: Any) -> None:
        """Hooks on both scored layers' attention, and what short cuts need."""
        layers, function = layers_of(vision), partial(score, self.scored_queries)
        scored = {
            number: ScoredLayer(
                part(layers[number - 1], "self_attn"), ("q_proj", "k_proj"), function
            )
            for number in sorted({self.config.object_layer, self.output_layer})
        }
        for attention in [layer.self_attn for layer in layers] if self.tuples else []:
            if not overridden(attention) and type(attention).__module__.startswith("transformers."):
                handle.patch(attention, _Attention, self, anew=True)  # else it may have any kernel
        handle.placed(self.capture.attach(scored))
        for layer in layers[self.output_layer - 1 :]:
            handle.patch(layer, _Layer, self)

    def kept_tokens(self, views: int) -> int:
        """N' of an image with so many views; known before the tower has run.

        Raises:
            HiPruneError: less than a token a view.
        """
        counted = views if self.counted_views is None else min(views, self.counted_views)
        budget = self.config.budget(counted * self.tokens.count)
        if budget < views:
            raise HiPruneError(
                f"retention={self.config.retention}: leaves no token for each of the {views} views "
                f"of an image; expected at least {views} tokens"
            )
        return min(budget // views, self.tokens.count) * views

    @contextmanager
    def passing(
        self,
        modules: Sequence[Any],
        pixels: Tensor,
        views: Sequence[int],
        columns: Sequence[int | None],
        looked_at: bool = False,
        tokens: Tokens | None = None,
        budgets: Sequence[int] | None = None,
    ) -> Iterator[Pass]:
        """One run of the tower, whose tokens are chosen.

        Args:
            modules: what is called, the CLIPVisionModel last.
            pixels: what it is called with, (sum of V, 3, H, W).
            views: V of each image.
            columns: grid views in a row of each, for the grid's tokens to come in the raster order
                of the merged picture; None: view by view.
            looked_at: are its attentions or hidden states asked for?
            tokens: what a view's are made of in this pass; None: the tower's.
            budgets: N' of a view of each image; None: N' of the image, shared out evenly.
        """
        tokens = self.tokens if tokens is None else tokens
        if budgets is None:
            budgets = [self.kept_tokens(count) // count for count in views]
        drops = any(budget < tokens.count for budget in budgets)
        unseen = drops and not looked_at and not _seen(self, modules, pixels)
        with self.capture.recording() as recording:
            token = _PASS.set(Pass(self, tokens, views, budgets, columns, recording, unseen))
            try:
                # Nobody wants gradients of an unseen pass: layers are not checkpointed either.
                with torch.set_grad_enabled(torch.is_grad_enabled() and not unseen):
                    yield _PASS.get()
            finally:
                _PASS.reset(token)


@dataclass
class Pass:
    """What one run of the tower works with.

    Attributes:
        budgets: N' of a view of each image.
        unseen: may what nobody looks at run otherwise?
        selections: one an image, whose rows are its views, once they are chosen.
        states: what the output layer gave: (1, sum of P, C_v) of a short pass.
    """

    tower: ClipTower
    tokens: Tokens
    views: Sequence[int]
    budgets: Sequence[int]
    columns: Sequence[int | None]
    recording: Recording
    unseen: bool
    selections: list[TokenSelection] | None = None
    states: Tensor | None = None

    @property
    def short(self) -> bool:
        """Does the output layer give kept tokens alone?"""
        # An object layer beyond the output layer is legal in the paper's ablation.
        return self.unseen and self.tower.config.object_layer <= self.tower.output_layer

    def kept(self, features: Tensor) -> list[Tensor]:
        """(sum of V, patches, C_v), or (1, sum of P, C_v) of a short pass -> (P, C_v) an image.

        P is N', but where extra tokens are handed on or a token has several patches. In front of
        the patches the extra tokens may stand.
        """
        tokens = self.tokens
        if self.short:
            return list(features[0].split([tokens.handed_on(s) for s in self.selections]))
        return self._take(lambda rows, places: tokens.take(features[rows], places), features.device)

    def cut(self, layer: Any, hidden: Tensor) -> Tensor:
        """The output layer: (sum of V, E + patches, C_v) -> (1, sum of P, C_v)."""
        found, rest = halves(layer, hidden, self.tower.scored_queries)
        self.recording.add(self.tower.output_layer, found)
        self.states = torch.cat(self._take(rest, found.device)).unsqueeze(0)
        return self.states

    def _take(self, features: Callable[[slice, Tensor], Tensor], device: Any) -> list[Tensor]:
        """Choose, and take the features of what is kept; see :func:`halves` for these."""
        tower, tokens, scores = self.tower, self.tokens, self.recording.found()
        # Extra tokens are dropped, and the layers may lie on several devices.
        object_scores, output_scores = (
            tokens.scores(scores[number].to(device))  # (sum of V, N)
            for number in (tower.config.object_layer, tower.output_layer)
        )

        def select(rows: slice, budget: int) -> TokenSelection:
            output = output_scores[rows]
            return tower.choose(
                Images.like(output, tokens.columns, budget),
                object_scores=object_scores[rows],
                output_scores=output,
                # Where a method needs it, these are scores of CLS's attention: its heads' mean.
                cls_attention=output.unsqueeze(1),  # (V, 1, N)
            )

        if all(count == 1 for count in self.views):  # one budget: all images at once
            chosen = select(slice(None), self.budgets[0])
            self.selections = [chosen[i : i + 1] for i in range(len(self.views))]
            return list(features(slice(None), tokens.places(chosen.indices)))
        self.selections, kept, start = [], [], 0
        for count, budget, columns in zip(self.views, self.budgets, self.columns, strict=True):
            rows = slice(start, start := start + count)
            chosen = select(rows, budget)
            # (V, P/V, C_v) -> (P, C_v)
            found = features(rows, tokens.places(chosen.indices)).flatten(0, 1)
            if columns is not None:
                found = found[merged_order(chosen, tokens.columns, columns)]
            self.selections.append(chosen)
            kept.append(found)
        return kept


_PASS: ContextVar[Pass | None] = ContextVar("hiprune_clip_pass", default=None)


def pass_of(module: Any) -> Pass | None:
    """The pass that runs, if it is one of this module's tower."""
    found = _PASS.get()
    return found if found is not None and found.tower is vars(module)[STATE] else None


class _Layer(Part):
    """The output layer, and those after it."""

    def forward(layer: Any, original: Callable, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        run = pass_of(layer)
        if run is None or not run.short:
            return original(hidden, *args, **kwargs)
        hidden = run.cut(layer, hidden) if run.selections is None else hidden
        return (hidden,) if run.tower.tuples else hidden


class _Attention(Part):
    """Of transformers 4.37."""

    def forward(attention: Any, original: Callable, *args: Any, **kwargs: Any) -> Any:
        run, given = (
            pass_of(attention),
            {n for n, x in kwargs.items() if x is not None and x is not False},
        )
        if run is None or not run.unseen or args or given != {"hidden_states"}:
            return original(*args, **kwargs)  # masks, or its map
        return fused_attention(attention, kwargs["hidden_states"]), None


def _seen(tower: ClipTower, modules: Sequence[Any], pixels: Tensor) -> bool:
    """Would anybody see that the tower is cut short?"""
    vision, inner = modules[-1], transformer_of(modules[-1])
    norm = inner.layernorm if hasattr(inner, "layernorm") else inner.post_layernorm
    around = (*modules, inner, inner.encoder, norm)
    skipped = list(layers_of(vision))[tower.output_layer - 1 :]  # in part, or all of it
    weights = vision.parameters()
    # A hook may bring in what wants a gradient, anywhere.
    gradients = torch.is_grad_enabled() and (
        pixels.requires_grad or observed(vision) or any(each.requires_grad for each in weights)
    )
    return (
        gradients
        or any(
            getattr(vision.config, f"output_{x}", False) for x in ("attentions", "hidden_states")
        )
        or any(observed(module, parts=False) for module in around)
        or any(observed(layer) for layer in skipped)
        or torch.compiler.is_compiling()
        or any(m._compiled_call_impl or "_orig_mod" in m._modules for m in (*around, *skipped))
        or drops_out(skipped[0])
    )
