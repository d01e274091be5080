"""What the LLaVA adapters share: a CLIP tower, looked at as it runs, and the choice of tokens.

An image is one view (LLaVA-1.5) or several (LLaVA-NeXT: a base view, then a grid of them). The
tower runs as its own modules, of transformers 4.37 or 5. Modifications, on one instance, until the
handle's remove() and only within a pass that drops tokens and that nobody looks into:
- the output layer runs its second half for the kept tokens alone, which it gives as (1, sum of N',
  C_v), and the layers after it hand them on; for a method that looks at tokens themselves it runs
  whole, and the layers after it hand all on;
- transformers 4.37's attention, which knows eager alone, is computed by torch's SDPA.
Where somebody looks (hooks on what would be skipped, gradients, attentions or hidden states that
are asked for, compiled modules) the tower runs as it is, and the kept tokens are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from hiprune.models.clip_layer import Look, fused_attention, gather, halves
from hiprune.models.views import in_order, with_merged
from torch import Tensor

from hiprune.capture import AttentionCapture, Recording, ScoredLayer, observed
from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.handle import STATE, Part, PruneHandle, overridden
from hiprune.methods import Images, method_of
from hiprune.selection import TokenSelection

# What of a layer answers to a method's needs; and those that the tower's tokens answer to.
_LOOKS = {
    "object_scores": "scores",
    "output_scores": "scores",
    "cls_attention": "cls_attention",
    "keys": "keys",
}
_TOKENS = frozenset({"features", "hidden", "projected", "image_embeds"})


class ClipTower:
    """What is known of one patched model's tower; it holds no module.

    Args:
        vision: transformers' CLIPVisionModel.
        select_layer: index into the tower's hidden states that the features come from; hidden
            state k of a tower with L layers is the output of layer k, k = -1 that of layer L.
        config: with the family's defaults filled in.
        max_views: the most views of an image, the base view included.

    Raises:
        HiPruneError: a layer or a budget that this tower cannot have.
    """

    def __init__(
        self, vision: Any, select_layer: int, config: HiPruneConfig, max_views: int
    ) -> None:
        n_layers = len(_transformer(vision).encoder.layers)
        self.config = config
        self.output_layer = select_layer % (n_layers + 1)
        self.columns = vision.config.image_size // vision.config.patch_size  # c; N = c * c
        self.tuples = _transformer(vision) is not vision  # layers of transformers 4 give these
        self.method = method_of(config)
        self.looks = self._looks()
        # Can all be chosen before the output layer's second half has run?
        self.reads_tokens = not _TOKENS.isdisjoint(self.method.needs)
        self.capture = AttentionCapture()
        if self.output_layer == 0:
            raise HiPruneError(
                f"vision select layer {select_layer}: the features are the embeddings; expected "
                "the output of a layer"
            )
        if config.object_layer > n_layers:
            raise HiPruneError(
                f"object_layer={config.object_layer}: expected 1 to {n_layers}, the layers of "
                "this model's vision tower"
            )
        tokens = max_views * self.columns**2
        if isinstance(config.retention, int) and not max_views <= config.retention <= tokens:
            what = f"{max_views} views of {self.columns**2}" if max_views > 1 else "one view"
            raise HiPruneError(
                f"retention={config.retention}: expected {max_views} to {tokens} tokens per "
                f"image ({what} in this model)"
            )

    def _looks(self) -> dict[int, Look]:
        """Layer -> what the method needs of it."""
        names: dict[int, set[str]] = {}
        of_cls = self.config.score == "cls"
        for need in self.method.needs:
            if need in _LOOKS:
                object_layer = need == "object_scores"
                number = self.config.object_layer if object_layer else self.output_layer
                names.setdefault(number, set()).add(_LOOKS[need])
        return {number: Look(frozenset(names[number]), of_cls) for number in sorted(names)}

    def patch(self, handle: PruneHandle, vision: Any) -> None:
        """Hooks on the attention of layers that are looked at, and what short cuts need."""
        layers = _transformer(vision).encoder.layers
        scored = {
            number: ScoredLayer(layers[number - 1].self_attn, ("q_proj", "k_proj"), look)
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
        return self.method.kept(self.budget(views), self.columns**2) * views

    def budget(self, views: int) -> int:
        """Of each of so many views of an image.

        Raises:
            HiPruneError: less than a token a view.
        """
        budget = self.config.budget(views * self.columns**2)
        if budget < views:
            raise HiPruneError(
                f"retention={self.config.retention}: leaves no token for each of the {views} views "
                f"of an image; expected at least {views} tokens"
            )
        return budget // views

    @contextmanager
    def passing(
        self,
        modules: Sequence[Any],
        pixels: Tensor,
        views: Sequence[int],
        columns: Sequence[int | None],
        looked_at: bool = False,
    ) -> Iterator[Pass]:
        """One run of the tower, whose tokens are chosen.

        Args:
            modules: what is called, the CLIPVisionModel last.
            pixels: what it is called with, (sum of V, 3, H, W).
            views: V of each image.
            columns: grid views in a row of each, for the grid's tokens to come in the raster order
                of the merged picture; None: view by view.
            looked_at: are its attentions or hidden states asked for?
        """
        drops = any([self.kept_tokens(count) < count * self.columns**2 for count in set(views)])
        unseen = drops and not looked_at and not _seen(self, modules, pixels)
        with self.capture.recording() as recording:
            token = _PASS.set(Pass(self, views, columns, recording, unseen))
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
        unseen: may what nobody looks at run otherwise?
        selections: one an image, whose rows are its views, once they are chosen.
        hidden: (sum of V, 1+N, C_v) of the output layer, where the method looks at it.
    """

    tower: ClipTower
    views: Sequence[int]
    columns: Sequence[int | None]
    recording: Recording
    unseen: bool
    selections: list[TokenSelection] | None = None
    hidden: Tensor | None = None

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
            kept = self._take(lambda rows, kept: gather(tokens[rows], kept), tokens.device, given)
            if "projected" in self.tower.method.needs:
                return kept
        projected = projector(torch.cat(kept))  # (sum of N', C)
        return list(projected.split([len(image) for image in kept]))

    def cut(self, layer: Any, hidden: Tensor) -> Tensor:
        """The output layer: (sum of V, 1+N, C_v) -> (1, sum of N', C_v)."""
        tower = self.tower
        found, rest = halves(layer, hidden, tower.looks.get(tower.output_layer))
        if found is not None:
            self.recording.add(tower.output_layer, found)
        kept = self._take(lambda rows, kept: rest(rows, 1 + kept), hidden.device, {})  # but for CLS
        return torch.cat(kept).unsqueeze(0)

    def _take(
        self,
        features: Callable[[slice, Tensor], Tensor],
        device: Any,
        given: dict[str, Tensor | None],
    ) -> list[Tensor]:
        """Choose, and take the features of what is kept; see :func:`halves` for these.

        Args:
            given: what the method may need but what layers were looked at for, (sum of V, ...).
        """
        tower, found = self.tower, self.recording.found()
        needed = {}
        for need in tower.method.needs:
            if need in _LOOKS:
                object_layer = need == "object_scores"
                number = tower.config.object_layer if object_layer else tower.output_layer
                needed[need] = found[number][_LOOKS[need]].to(device)  # layers may lie on several
            else:
                needed[need] = given[need]

        def select(rows: slice, views: int, number: int) -> TokenSelection:
            images = Images(
                number, tower.columns**2, tower.columns, tower.budget(views), torch.device(device)
            )
            return tower.method(images, **{need: x[rows] for need, x in needed.items()})

        if all(count == 1 for count in self.views):  # one budget: all images at once
            chosen = select(slice(None), 1, len(self.views))
            found = with_merged(features(slice(None), chosen.indices), chosen)  # (B, N', C_v)
            chosen = _detached(chosen)
            self.selections = [chosen[i : i + 1] for i in range(len(self.views))]
            return list(found)
        self.selections, kept, start = [], [], 0
        for count, columns in zip(self.views, self.columns, strict=True):
            rows = slice(start, start := start + count)
            chosen = select(rows, count, count)
            found = features(rows, chosen.indices)  # (V, N'/V, C_v)
            kept.append(in_order(found, chosen, tower.columns, columns))
            self.selections.append(_detached(chosen))
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
    vision, inner = modules[-1], _transformer(modules[-1])
    around = (*modules, inner, inner.encoder, inner.post_layernorm)
    skipped = list(inner.encoder.layers)[tower.output_layer - 1 :]  # in part, or all of it
    attention, weights = skipped[0].self_attn, vision.parameters()
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
        or (attention.training and attention.dropout > 0)
    )


def _detached(chosen: TokenSelection) -> TokenSelection:
    """For ``selections``, which outlive the pass."""
    return chosen if chosen.merged is None else replace(chosen, merged=chosen.merged.detach())


def _transformer(vision: Any) -> Any:
    """What of a CLIPVisionModel has the layers: the model itself since transformers 5."""
    return getattr(vision, "vision_model", vision)
