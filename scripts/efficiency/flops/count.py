"""What a part of a model multiplies, counted by fvcore from its trace: nothing goes unnoticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import conv_flop_count, get_shape
from torch import Tensor, nn

# fvcore's names of the operators -> which part of Work they are. In the modules counted here, a
# weight is only ever multiplied by a linear layer or a convolution; the other products are of
# activations: attention, in one operator (SDPA) or as two matmuls (eager).
WEIGHTS = {"linear", "addmm", "mm", "conv", "_convolution_mode"}
ATTENTION = {"matmul", "bmm", "scaled_dot_product_attention"}
NORMS = {"layer_norm"}  # fvcore guesses 5 an element; no part of Work
# What fvcore knows no count of and what multiplies no matrices: element by element, sums of one
# tensor, lookups, and moves. Anything else that it cannot count is an error.
HARMLESS = {
    f"aten::{name}"
    for name in (
        "add", "add_", "sub", "rsub", "mul", "mul_", "div", "div_", "neg", "pow", "square",
        "sqrt", "rsqrt", "abs", "exp", "cos", "sin", "sigmoid", "silu", "gelu", "tanh", "softmax",
        "rms_norm", "mean", "sum", "cumsum", "where", "lt", "le", "ne", "masked_fill_",
        "embedding", "index_select", "repeat", "repeat_interleave", "expand_as", "unflatten",
        "clone", "alias", "mT", "ones_like", "lift_fresh",
    )
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Multiply-adds: a multiplication and the addition of its product are one, as fvcore counts.

    Biases, norms, activations, softmax and rotations multiply no matrices and are left out.

    Attributes:
        weights: of activations with weights: linear layers, lm_head, patch convolutions.
        attention: of activations with each other: QK^T and the attention times V. In full: of a
            causal mask the half that is thrown away, too.
    """

    weights: int = 0
    attention: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.weights + other.weights, self.attention + other.attention)

    def __mul__(self, times: int) -> Work:
        return Work(self.weights * times, self.attention * times)

    @property
    def total(self) -> int:
        return self.weights + self.attention


@dataclass(frozen=True)
class Picture:
    """One image as the vision tower gets it.

    Attributes:
        views: 1; LLaVA-NeXT, LLaVA-OneVision: the base view and those of its grid; InternVL: tiles.
        rows, columns: of patches, in a view.
        merge: sides of a square of patches that become one token.
    """

    views: int
    rows: int
    columns: int
    merge: int = 1

    @property
    def tokens(self) -> int:
        """N: what the language model gets of the image, unpruned."""
        return self.views * (self.rows // self.merge) * (self.columns // self.merge)


class Counts(Protocol):
    """The parts of one model on one picture; ``kept`` is N', over all views."""

    def tower(self) -> Work:
        """The whole vision tower, without projector or merger."""

    def pruned_tower(self, kept: int) -> Work:
        """The tower up to the output layer, which goes on for the kept tokens alone.

        There, queries, keys and values are made of all tokens (the scores need all queries); the
        attention itself, its output projection and the MLP see the kept tokens' queries.
        """

    def scoring_pass(self) -> Work:
        """QK^T of the two scored layers, once."""

    def projector(self, tokens: int) -> Work:
        """The projector (Qwen's: the mergers) on so many tokens of the language model."""

    def layers(self, positions: int) -> Work:
        """All decoder layers on a prompt of so many positions."""

    def lm_head(self, positions: int) -> Work:
        """The logits of so many positions."""


class UncountedError(RuntimeError):
    """fvcore met an operator that may multiply and that nobody counts."""


def count(module: nn.Module, *inputs: Tensor) -> Work:
    """Multiply-adds of one forward of ``module``, counted by fvcore from its trace.

    Raises:
        UncountedError: an operator that is neither counted nor known to multiply no matrices.
    """
    analysis = FlopCountAnalysis(module.eval(), inputs)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_multiply_adds)
    # SigLIP's, whose padding has a name.
    analysis.set_op_handle("aten::_convolution_mode", _convolution_multiply_adds)
    # fvcore would log a line an operator; what they say is checked below instead. A module that
    # "was never called" is one whose children a part below calls by themselves.
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        found = analysis.by_operator()
    unknown = set(analysis.unsupported_ops()) - HARMLESS
    unknown |= set(found) - WEIGHTS - ATTENTION - NORMS
    if unknown:
        raise UncountedError(
            f"{type(module).__name__}: operators {', '.join(sorted(unknown))}; expected those that "
            "are counted, or known to multiply no matrices (scripts/efficiency/flops/count.py)"
        )
    return Work(_sum(found, WEIGHTS), _sum(found, ATTENTION))


class Call(nn.Module):
    """A module with keyword arguments that are no traced inputs; fvcore gives positions only."""

    def __init__(self, module: nn.Module, **arguments: Any) -> None:
        super().__init__()
        self.module = module
        self.arguments = arguments

    def forward(self, hidden: Tensor) -> Any:
        return self.module(hidden, **self.arguments)


class Logits(nn.Module):
    """QK^T, as scoring computes it in each of its passes."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return query @ key.transpose(-1, -2)


def one_of(layers: Sequence[nn.Module]) -> nn.Module:
    """The first of layers that are all alike.

    Raises:
        ValueError: some layer has parameters of other shapes.
    """
    shapes = [[(name, p.shape) for name, p in layer.named_parameters()] for layer in layers]
    if any(other != shapes[0] for other in shapes):
        raise ValueError(f"{type(layers[0]).__name__}: layers of different shapes")
    return layers[0]


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _sum(found: Counter[str], names: set[str]) -> int:
    return sum(int(found[name]) for name in names)


def _attention_multiply_adds(inputs: list[Any], outputs: list[Any]) -> int:
    """Of aten::scaled_dot_product_attention: query (..., H, M, D), key (..., H', N, D), value."""
    query, key, value = (get_shape(value) for value in inputs[:3])
    maps = prod(query[:-1]) * key[-2]  # ... * H * M * N; H, also where fewer heads have keys
    return maps * query[-1] + maps * value[-1]  # QK^T and PV


def _convolution_multiply_adds(inputs: list[Any], outputs: list[Any]) -> int:
    return conv_flop_count(*(get_shape(value) for value in (*inputs[:2], outputs[0])))


class LanguageModel:
    """Counts of a decoder on the meta device.

    Args:
        decoder: transformers' LlamaModel, Qwen2Model or a Qwen's text model.
        lm_head: its linear layer.
        axes: of a position: 1, or M-RoPE's 3.
    """

    def __init__(self, decoder: Any, lm_head: nn.Linear, axes: int = 1) -> None:
        self.decoder = decoder
        self.head = lm_head
        self.axes = axes

    def layers(self, positions: int) -> Work:
        # All layers have the same shapes (checked): one is counted, and multiplied.
        layer = Call(one_of(self.decoder.layers), **self._arguments(positions))
        return count(layer, meta(1, positions, self.head.in_features)) * len(self.decoder.layers)

    def lm_head(self, positions: int) -> Work:
        return count(self.head, meta(1, positions, self.head.in_features))

    def _arguments(self, positions: int) -> dict[str, Any]:
        """What a layer takes beside the hidden states, as transformers 4.37 and 5 hand it over."""
        ids = torch.empty(1, positions, dtype=torch.long, device="meta")
        # With a mask, 4.37's SDPA does not ask for the length, which is no number in a trace.
        arguments = {"attention_mask": meta(1, 1, positions, positions), "position_ids": ids}
        rotary = getattr(self.decoder, "rotary_emb", None)
        if rotary is not None:  # 5: rotated by tables that the decoder makes once for all layers
            ids = ids if self.axes == 1 else ids.expand(self.axes, -1, -1)
            arguments["position_embeddings"] = rotary(meta(1, positions, 1), ids)
        return arguments
