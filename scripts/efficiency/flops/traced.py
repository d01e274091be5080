"""count: what fvcore finds in one module, as Work; nothing that multiplies goes unnoticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn

from scripts.efficiency.flops.work import Work

# fvcore's names of the operators -> which part of Work they are. In the modules counted here, a
# weight is only ever multiplied by a linear layer or a convolution; the other products are of
# activations: attention, in one operator (SDPA) or as two matmuls (eager).
WEIGHTS = {"linear", "addmm", "mm", "conv"}
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


class UncountedError(RuntimeError):
    """fvcore met an operator that may multiply and that nobody counts."""


def count(module: nn.Module, *inputs: Tensor) -> Work:
    """Multiply-adds of one forward of ``module``, counted by fvcore from its trace.

    Raises:
        UncountedError: an operator that is neither counted nor known to multiply no matrices.
    """
    analysis = FlopCountAnalysis(module.eval(), inputs)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_multiply_adds)
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
