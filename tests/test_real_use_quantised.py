"""Quantised checkpoints: linear layers of whole numbers, which their module alone can read."""

from __future__ import annotations

import pytest
from family import DTYPE, close, forward
from matrix import over_families
from torch import Tensor, nn

import hiprune

pytestmark = pytest.mark.usefixtures("one_thread")


class Int8Linear(nn.Module):
    """A linear layer as quantising libraries put it in a model: int8 weights, a scale a row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight / scale).round().char(), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def dequantised(self) -> Tensor:
        return self.weight.to(self.scale.dtype) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantised(), self.bias)


def quantise(family, model) -> None:
    """Every linear layer of the tower becomes an Int8Linear."""
    for module in list(family.tower(model).modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))


def dequantise(model) -> None:
    """Every Int8Linear becomes an ordinary layer with the same values."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Int8Linear):
                plain = nn.Linear(child.in_features, child.out_features, child.bias is not None)
                plain.weight, plain.bias = nn.Parameter(child.dequantised()), child.bias
                setattr(module, name, plain.to(DTYPE))


@over_families
def test_a_quantised_tower_is_pruned_as_its_values_are(family):
    model, plain = family.model(), family.model()
    quantise(family, model)
    quantise(family, plain)
    dequantise(plain)
    assert any(isinstance(module, Int8Linear) for module in model.modules())
    arguments = family.inputs(model, [1, 2])
    for retention in (family.full, family.third):
        with hiprune.prune(plain, family.config(retention)) as handle:
            expected, ids = forward(plain, arguments).logits, family.answer(plain, arguments)
            kept = [selection.indices.tolist() for selection in handle.selections]
        with hiprune.prune(model, family.config(retention)) as handle:
            close(forward(model, arguments).logits, expected)
            assert [selection.indices.tolist() for selection in handle.selections] == kept
            assert family.answer(model, arguments) == ids
