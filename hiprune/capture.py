"""AttentionCapture: removable hooks that score the chosen attention layers of one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from hiprune.errors import HiPruneError


@dataclass(frozen=True)
class ScoredLayer:
    """One attention layer to score, as an adapter describes it.

    Attributes:
        attention: the module that computes the layer's attention, by whatever kernel.
        projections: submodules whose outputs the queries and keys are made of. The model computes
            them anyway: nothing is computed twice.
        score: the projections' outputs, in their order, and the attention's keyword arguments ->
            attention that each token receives, (B, N) or (N,).
    """

    attention: nn.Module
    projections: tuple[nn.Module, ...]
    score: Callable[..., Tensor]


class AttentionCapture:
    """Hooks on the scored layers (numbered as in the paper, from 1); idle unless recording.

    The attention that the model computes is left alone, so that any kernel will do.
    """

    def __init__(self, layers: Mapping[int, ScoredLayer]) -> None:
        self._layers = dict(layers)
        self._recording = False
        self._outputs: dict[int, dict[int, Tensor]] = {}
        self._scores: dict[int, list[Tensor]] = {}
        self._hooks = []
        for number, layer in self._layers.items():
            for place, projection in enumerate(layer.projections):
                hook = partial(self._keep_output, number, place)
                self._hooks.append(projection.register_forward_hook(hook))
            hook = partial(self._score, number)
            self._hooks.append(layer.attention.register_forward_hook(hook, with_kwargs=True))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record one image pass; :meth:`scores` gives what was found, inside of the block."""
        self._recording = True
        self._scores = {number: [] for number in self._layers}
        try:
            yield
        finally:
            self._recording = False
            self._outputs.clear()
            self._scores = {}

    def scores(self) -> dict[int, Tensor]:
        """Layer number -> float32 scores of this pass.

        Raises:
            HiPruneError: a scored layer did not run exactly once so far.
        """
        for number, found in self._scores.items():
            if len(found) != 1:
                raise HiPruneError(
                    f"layer {number}: its attention ran {len(found)} times in one image pass; "
                    "accepted is exactly once"
                )
        return {number: found[0] for number, found in self._scores.items()}

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _keep_output(self, number: int, place: int, module, args, output: Tensor) -> None:
        if self._recording:
            self._outputs.setdefault(number, {})[place] = output.detach()

    def _score(self, number: int, module, args, kwargs, output) -> None:
        if not self._recording:
            return
        layer = self._layers[number]
        outputs = self._outputs.pop(number, {})
        if len(outputs) != len(layer.projections):
            raise HiPruneError(
                f"layer {number}: its {type(module).__name__} ran without calling its query and "
                "key projections; accepted is an attention that calls them as modules"
            )
        found = layer.score(*(outputs[place] for place in sorted(outputs)), **kwargs)
        self._scores[number].append(found)
