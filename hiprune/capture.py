"""AttentionCapture: removable hooks that score the chosen attention layers of one model.

A hook is a small object without a module in it; what one image pass records lies with the pass
(:class:`Recording`, in a context variable), not with the model: passes of other threads, nested
ones and the recomputing of gradient checkpointing do not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hiprune.errors import HiPruneError
from hiprune.handle import overridden

_RECORDING: ContextVar[Recording | None] = ContextVar("hiprune_recording", default=None)
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_ALIGNING = "AlignDevicesHook"


@dataclass(frozen=True)
class ScoredLayer:
    """One attention layer to score, as an adapter describes it.

    Attributes:
        attention: the module that computes the layer's attention, by whatever kernel.
        projections: names of its submodules whose outputs the queries and keys are made of. They
            are looked up whenever the attention runs: what was put in their place meanwhile (LoRA)
            counts. The model computes the outputs anyway: nothing is computed twice.
        score: the attention module, the projections' outputs in their order, and the attention's
            keyword arguments -> attention that each token receives, (B, N) or (N,), or what else
            the adapter looks for. A function of a module, or an object of a class of one.
    """

    attention: nn.Module
    projections: tuple[str, ...]
    score: Callable[..., Any]


class Recording:
    """What one image pass found of the scored layers.

    Attributes:
        scores: layer number -> what the layer's function gave, each time that the layer ran.
    """

    def __init__(self, capture: AttentionCapture, numbers: tuple[int, ...]) -> None:
        self.capture = capture
        self.scores: dict[int, list[Any]] = {number: [] for number in numbers}
        self.outputs: dict[int, Tensor] = {}  # id of a projection -> its output

    def add(self, number: int, scores: Any) -> None:
        """What the adapter has computed itself."""
        self.scores[number].append(scores)

    def found(self) -> dict[int, Any]:
        """Layer number -> what was found of it in this pass.

        Raises:
            HiPruneError: a scored layer did not run exactly once so far.
        """
        for number, found in self.scores.items():
            if len(found) != 1:
                raise HiPruneError(
                    f"layer {number}: its attention ran {len(found)} times in one image pass; "
                    "expected exactly once (a layer that was compiled, or replaced, before HiPrune "
                    "was applied to it is not seen)"
                )
        return {number: found[0] for number, found in self.scores.items()}


class AttentionCapture:
    """Hooks on scored layers (numbered as in the paper, from 1); idle unless recording.

    The attention that the model computes is left alone, so that any kernel will do.
    """

    def __init__(self) -> None:
        self.numbers: tuple[int, ...] = ()

    def attach(self, layers: Mapping[int, ScoredLayer]) -> Iterator[tuple[nn.Module, _Score]]:
        """Hook the layers, as it is iterated: what is to be taken off again, and then it is on.

        For :meth:`hiprune.PruneHandle.placed`.
        """
        self.numbers = tuple(layers)
        for number, layer in layers.items():
            hook = _Score(self, number, layer.projections, layer.score)
            yield layer.attention, hook
            layer.attention.register_forward_pre_hook(hook.watch)
            layer.attention.register_forward_hook(hook, with_kwargs=True)
            hook.watch(layer.attention, ())

    @contextmanager
    def recording(self) -> Iterator[Recording]:
        """Record one image pass of this thread."""
        token = _RECORDING.set(Recording(self, self.numbers))
        try:
            yield _RECORDING.get()
        finally:
            _RECORDING.reset(token)


@contextmanager
def captured(layers: Mapping[int, ScoredLayer]) -> Iterator[Recording]:
    """Hooks for one image pass, taken off afterwards."""
    capture, placed = AttentionCapture(), []
    try:
        placed.extend(capture.attach(layers))
        with capture.recording() as recording:
            yield recording
    finally:
        for module, hook in placed:
            hook.detach(module)


def observed(module: nn.Module, parts: bool = True) -> bool:
    """Would anybody else see how the module, or a part of it, is called?

    By a hook, or by a forward of their own. transformers' own hooks, which it leaves wherever it
    once was asked for attentions or hidden states, do nothing unless asked again; accelerate's
    that bring weights and inputs to a device do nothing else.
    """
    left = [module]
    while left:  # quicker than modules(), for it runs before every pass
        attributes = vars(part := left.pop())
        hook = attributes.get("_hf_hook")
        if overridden(part) or (hook is not None and type(hook).__name__ != _ALIGNING):
            return True
        for name in "_forward_hooks", "_forward_pre_hooks", "_backward_hooks":
            for hook in attributes[name].values():
                if not isinstance(hook, (_Score, _Watch, _Keep)) and not getattr(
                    hook, "__module__", ""
                ).startswith("transformers."):
                    return True
        if parts:
            left += [each for each in attributes["_modules"].values() if each is not None]
    return False


class _Score:
    """After a scored attention: its projections' outputs become scores."""

    def __init__(
        self, capture: AttentionCapture, number: int, projections: tuple, score: Callable
    ) -> None:
        self.capture = capture
        self.number, self.projections, self.score = number, projections, score
        self.watch = _Watch(projections, _Keep(capture))

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        recording = _RECORDING.get()
        if recording is None or recording.capture is not self.capture:
            return
        found = [recording.outputs.pop(id(getattr(module, n)), None) for n in self.projections]
        recording.outputs.clear()  # also of what a projection is made of (LoRA's base layer)
        if any(output is None for output in found):
            raise HiPruneError(
                f"layer {self.number}: its {type(module).__name__} ran without calling its query "
                "and key projections; expected an attention that calls them as modules, and that "
                "was not compiled before HiPrune was applied"
            )
        recording.add(self.number, self.score(module, *found, **kwargs))

    def detach(self, attention: nn.Module) -> None:
        """Off the attention, and off whatever has served it as a projection."""
        for module in attention.modules():
            for name in _HOOKS[0], _HOOKS[3]:
                for key, hook in list(getattr(module, name).items()):
                    if hook is self or hook is self.watch or hook is self.watch.keep:
                        for hooks in _HOOKS:
                            getattr(module, hooks).pop(key, None)


class _Watch:
    """Before a scored attention: its projections of now have a hook."""

    def __init__(self, projections: tuple[str, ...], keep: _Keep) -> None:
        self.projections, self.keep = projections, keep

    def __call__(self, module: nn.Module, args: tuple) -> None:
        for name in self.projections:
            projection = getattr(module, name)
            if self.keep not in projection._forward_hooks.values():
                projection.register_forward_hook(self.keep)


class _Keep:
    """After a projection."""

    def __init__(self, capture: AttentionCapture) -> None:
        self.capture = capture

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        recording = _RECORDING.get()
        if recording is not None and recording.capture is self.capture:
            recording.outputs[id(module)] = output.detach()
