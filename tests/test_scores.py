"""received_attention against its float64 oracle, and that it never holds the N x N map."""

from __future__ import annotations

import pytest
import torch
from score_cases import bounds, heads, packed_reference
from torch.utils._python_dispatch import TorchDispatchMode

from hiprune import HiPruneError, received_attention, scores
from hiprune.scores import received_attention_packed, received_attention_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (2, 3, 37, 64), (1, 16, 577, 64), (3, 2, 130, 80)])
def test_equals_the_float64_oracle(shape, dtype):
    query, key = heads(*shape, dtype, seed=1), heads(*shape, dtype, seed=2)
    score = received_attention(query, key)
    assert score.dtype == torch.float32
    # The inputs are exact in float64, so that only float32 rounding is between the two.
    expected = received_attention_reference(query, key).float()
    torch.testing.assert_close(score, expected, rtol=2e-5, atol=1e-8)
    torch.testing.assert_close(score.sum(dim=1), torch.ones(shape[0]))


@pytest.mark.parametrize("block_elements", [1, 700, 1 << 20])
def test_the_block_size_changes_nothing(monkeypatch, block_elements):
    monkeypatch.setattr(scores, "BLOCK_ELEMENTS", block_elements)
    query, key = heads(2, 2, 33, 16, seed=1), heads(2, 2, 33, 16, seed=2)
    expected = received_attention_reference(query, key).float()
    torch.testing.assert_close(received_attention(query, key), expected)


def test_scale_and_other_numbers_of_queries():
    query, key = heads(1, 2, 5, 16, seed=1), heads(1, 2, 33, 16, seed=2)
    expected = received_attention_reference(query, key, scale=0.3).float()
    assert expected.shape == (1, 33)
    torch.testing.assert_close(received_attention(query, key, scale=0.3), expected)


@pytest.mark.parametrize("lengths", [[50], [16, 16, 8, 4, 0, 2, 4], [1] * 50])
def test_packed_segments_are_those_of_one_masked_map(lengths):
    query, key = heads(1, 3, 50, 16, seed=1)[0], heads(1, 3, 50, 16, seed=2)[0]
    expected = packed_reference(query, key, lengths)
    torch.testing.assert_close(received_attention_packed(query, key, bounds(lengths)), expected)


def test_log_sum_exp_given():
    query, key = heads(2, 3, 37, 16, seed=1), heads(2, 3, 37, 16, seed=2)
    known = (query @ key.transpose(-1, -2) * 0.3).logsumexp(dim=-1)
    found = received_attention(query, key, scale=0.3, logsumexp=known)
    torch.testing.assert_close(found, received_attention(query, key, scale=0.3))
    with pytest.raises(HiPruneError, match=r"logsumexp: shape \(2, 3\), expected"):
        received_attention(query, key, logsumexp=known[..., 0])


def test_float32_whatever_the_surroundings():
    query, key = heads(1, 2, 33, 16, seed=1), heads(1, 2, 33, 16, seed=2)
    expected = received_attention(query, key)
    packed = received_attention_packed(query[0], key[0], bounds([33]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(received_attention(query, key), expected)
        assert torch.equal(received_attention_packed(query[0], key[0], bounds([33])), packed)
    torch.set_default_dtype(torch.float16)  # what a load that failed half way can leave
    try:
        assert torch.equal(received_attention(query, key), expected)
        assert received_attention_packed(query[0], key[0], bounds([33])).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("wrong", [[0, 25, 49], [1, 50], [0, 30, 20, 50], [0, 51]])
def test_packed_segments_have_to_add_up(wrong):
    query = heads(1, 3, 50, 16)[0]
    with pytest.raises(HiPruneError, match=r"cu_seqlens: \[.*\]; expected .* 0 to N = 50"):
        received_attention_packed(query, query, torch.tensor(wrong))


def test_no_gradient_holds_the_map():
    query, key = (heads(1, 2, 33, 16, seed=seed).requires_grad_() for seed in (1, 2))
    assert not received_attention(query, key).requires_grad
    assert not received_attention_packed(query[0], key[0], bounds([33])).requires_grad


def test_equal_bits_for_equal_input():
    query, key = heads(2, 4, 200, 32, seed=1), heads(2, 4, 200, 32, seed=2)
    assert torch.equal(received_attention(query, key), received_attention(query, key))


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_memory_grows_with_n_not_with_its_square(monkeypatch):
    monkeypatch.setattr(scores, "BLOCK_ELEMENTS", 1 << 14)
    largest = {}
    for tokens in (512, 2048):
        query, key = heads(1, 2, tokens, 8, seed=1), heads(1, 2, tokens, 8, seed=2)
        with LargestTensor() as watch:
            received_attention(query, key)
        largest[tokens] = watch.elements
    assert largest[2048] <= 4 * largest[512]
    assert largest[2048] < 2048 * 2048 / 8


@pytest.mark.parametrize(
    ("query", "key", "name"),
    [
        (torch.rand(2, 3, 4), torch.rand(2, 3, 4), "query"),
        (torch.rand(1, 2, 3, 4), torch.rand(1, 2, 0, 4), "key"),
        (torch.rand(1, 2, 3, 4), torch.rand(1, 3, 3, 4), "key"),
        (torch.rand(1, 2, 3, 4), torch.rand(1, 2, 3, 5), "key"),
        (torch.ones(1, 2, 3, 4, dtype=torch.long), torch.rand(1, 2, 3, 4), "query"),
        (torch.rand(1, 2, 3, 4), torch.rand(1, 2, 3, 4, device="meta"), "key"),
        (torch.rand(1, 2, 3, 4), torch.rand(1, 2, 3, 4).half(), "key"),
    ],
)
def test_bad_input_is_named(query, key, name):
    with pytest.raises(HiPruneError, match=f"^{name}: "):
        received_attention(query, key)
