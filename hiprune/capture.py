"""AttentionCapture: removable hooks that score the chosen attention layers of one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from hiprune.errors import HiPruneError
from hiprune.scores import received_attention


@dataclass(frozen=True)
class ScoredLayer:
    """One attention layer to score, as an adapter describes it.

    Attributes:
        attention: the module that computes the layer's attention, by whatever kernel.
        projections: submodules whose outputs the queries and keys are made of. The model computes
            them anyway: nothing is computed twice.
        to_heads: the projections' outputs, in their order -> query and key, (B, H, N, D) each.
        scale: factor of the logits.
    """

    attention: nn.Module
    projections: tuple[nn.Module, ...]
    to_heads: Callable[..., tuple[Tensor, Tensor]]
    scale: float


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
            self._hooks.append(layer.attention.register_forward_hook(hook))

    @contextmanager
    def recording(self) -> Iterator[dict[int, Tensor]]:
        """Record one image pass; the dictionary yielded is filled when the block ends.

        Yields:
            layer number -> (B, N) float32 scores.

        Raises:
            HiPruneError: a scored layer did not run exactly once.
        """
        scores: dict[int, Tensor] = {}
        self._recording = True
        self._scores = {number: [] for number in self._layers}
        try:
            yield scores
            for number, found in self._scores.items():
                if len(found) != 1:
                    raise HiPruneError(
                        f"layer {number}: its attention ran {len(found)} times in one image pass; "
                        "accepted is exactly once"
                    )
                scores[number] = found[0]
        finally:
            self._recording = False
            self._outputs.clear()
            self._scores = {}

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _keep_output(self, number: int, place: int, module, args, output: Tensor) -> None:
        if self._recording:
            self._outputs.setdefault(number, {})[place] = output.detach()

    def _score(self, number: int, module, args, output) -> None:
        if not self._recording:
            return
        layer = self._layers[number]
        outputs = self._outputs.pop(number, {})
        if len(outputs) != len(layer.projections):
            raise HiPruneError(
                f"layer {number}: its {type(module).__name__} ran without calling its query and "
                "key projections; accepted is an attention that calls them as modules"
            )
        query, key = layer.to_heads(*(outputs[place] for place in sorted(outputs)))
        self._scores[number].append(received_attention(query, key, layer.scale))
