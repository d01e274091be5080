"""A CLIP-like tower (CLIP, SigLIP, InternViT), looked at as it runs, and the choice of tokens.

An image is one view (LLaVA-1.5) or several (LLaVA-NeXT: a base view, then a grid of them; InternVL:
tiles). A layer sees E extra tokens (CLS; none in SigLIP), then the patches of a view. The tower
runs as its own modules, of transformers 4.37 or 5. Modifications, on one instance, until the
handle's remove() and only within a pass that drops tokens and that nobody looks into:
- the output layer runs its second half for the kept tokens alone, which it gives as (1, sum of P,
  C_v), and the layers after it hand them on; for a method that looks at tokens themselves it runs
  whole, and the layers after it hand all on;
- transformers 4.37's attention, which knows eager alone, is computed by torch's SDPA.
Where somebody looks (hooks on what would be skipped, gradients, attentions or hidden states that
are asked for, compiled modules) the tower runs as it is, and the kept tokens are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from hiprune.models.clip_layer import (
    Look,
    drops_out,
    fused_attention,
    layers_of,
    norm_of,
    part,
    patch_columns,
    transformer_of,
)
from hiprune.models.clip_pass import LOOKS, PASS, TOKENS, Pass, pass_of
from hiprune.models.clip_text import ClipText
from hiprune.models.tokens import Tokens
from hiprune.models.views import check_budget
from torch import Tensor

from hiprune.capture import AttentionCapture, ScoredLayer, observed
from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import Part, PruneHandle, overridden
from hiprune.methods import method_of


class ClipTower:
    """What is known of one patched model's tower; it holds no module of it.

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
        self.tuples = transformer_of(vision) is not vision  # layers of transformers 4 give these
        self.method = method_of(config)
        self.looks = self._looks()
        # Can all be chosen before the output layer's second half has run?
        self.reads_tokens = not TOKENS.isdisjoint(self.method.needs)
        self.reads_text = "text_embeds" in self.method.needs
        self.text: ClipText | None = None  # the adapter's, where it is read
        self.capture = AttentionCapture()
        if self.output_layer == 0:
            raise HiPruneError(
                f"vision select layer {select_layer}: the features are the embeddings; expected "
                "the output of a layer"
            )
        if config.uses_cls and not self.tokens.extra:
            name = "score" if config.score == "cls" else "method"
            raise HiPruneError(
                f"{name}={getattr(config, name)!r}: this model's vision tower has no CLS token; "
                f"expected another {name}"
            )
        beyond = set(self.method.needs) - {"object_scores", "output_scores", "cls_attention"}
        if beyond and not self.tokens.plain:
            raise HiPruneError(
                f"method={config.method!r}: needs {', '.join(sorted(beyond))}, which are not known "
                "of this model's tokens; expected a method that needs attention alone"
            )
        if config.object_layer > n_layers:
            raise HiPruneError(
                f"object_layer={config.object_layer}: expected 1 to {n_layers}, the layers of "
                "this model's vision tower"
            )
        if max_views is not None:
            check_budget(config.retention, max_views, self.tokens.count, least=max_views)

    def _looks(self) -> dict[int, Look]:
        """Layer -> what the method needs of it."""
        names: dict[int, set[str]] = {}
        of_cls = self.config.score == "cls"
        for need in self.method.needs:
            if need in LOOKS:
                object_layer = need == "object_scores"
                number = self.config.object_layer if object_layer else self.output_layer
                names.setdefault(number, set()).add(LOOKS[need])
        extra = self.tokens.extra
        return {n: Look(frozenset(names[n]), of_cls, extra) for n in sorted(names)}

    def patch(self, handle: PruneHandle, vision: Any) -> None:
        """Hooks on the attention of layers that are looked at, and what short cuts need."""
        layers = layers_of(vision)
        scored = {
            number: ScoredLayer(part(layers[number - 1], "self_attn"), ("q_proj", "k_proj"), look)
            for number, look in self.looks.items()
        }
        for attention in [layer.self_attn for layer in layers] if self.tuples else []:
            if not overridden(attention) and type(attention).__module__.startswith("transformers."):
                handle.patch(attention, _Attention, self, anew=True)  # else it may have any kernel
        handle.placed(self.capture.attach(scored))
        for layer in layers[self.output_layer - 1 :]:
            handle.patch(layer, _Layer, self)

    def kept_tokens(self, views: int) -> int:
        """N' of an image with so many views; known before the tower has run."""
        return self.method.kept(self.budget(views), self.tokens.count) * views

    def budget(self, views: int) -> int:
        """Of each of so many views of an image.

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
        return min(budget // views, self.tokens.count)

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
        budgets = [self.budget(count) for count in views] if budgets is None else budgets
        drops = any(self.method.kept(budget, tokens.count) < tokens.count for budget in budgets)
        unseen = drops and not looked_at and not _seen(self, modules, pixels)
        with self.capture.recording() as recording:
            norm = norm_of(modules[-1])
            token = PASS.set(Pass(self, tokens, views, budgets, columns, recording, unseen, norm))
            try:
                # Nobody wants gradients of an unseen pass: layers are not checkpointed either.
                with torch.set_grad_enabled(torch.is_grad_enabled() and not unseen):
                    yield PASS.get()
            finally:
                PASS.reset(token)


class _Layer(Part):
    """The output layer, and those after it."""

    def forward(layer: Any, original: Callable, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        run = pass_of(layer)
        if run is not None and run.cuts:
            hidden = run.cut(layer, hidden) if run.selections is None else hidden
        elif run is not None and run.short and run.hidden is not None:
            pass  # it ended with the output layer
        else:
            output = original(hidden, *args, **kwargs)
            if run is not None and run.hidden is None:
                run.hidden = output[0] if run.tower.tuples else output
            return output
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
    around = (*modules, inner, inner.encoder, norm_of(vision))
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
