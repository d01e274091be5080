"""The FlashAttention that torch brings, in the place of the `flash-attn` package.

transformers' attn_implementation="flash_attention_2" asks that package for two functions; torch's
own kernels are the same algorithm, and are there with every torch for CUDA. Functions take and give
(B, T, H, D), or (sum of T, H, D) with the bounds of the segments.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections import Counter

import torch
from torch import Tensor

calls: Counter[str] = Counter()


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, **_) -> Tensor:
    calls["dense"] += 1
    return _attend(q, k, v, None, None, q.shape[1], k.shape[1], softmax_scale, causal)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
    softmax_scale=None, causal=False, **_,
) -> Tensor:  # fmt: skip
    calls["varlen"] += 1
    bounds = cu_seqlens_q.int(), cu_seqlens_k.int()
    return _attend(q, k, v, *bounds, int(max_seqlen_q), int(max_seqlen_k), softmax_scale, causal)


def _attend(q, k, v, bounds_q, bounds_k, longest_q, longest_k, scale, causal) -> Tensor:
    size = q.shape[-1]
    scale = size**-0.5 if scale is None else scale
    q, k, v = (torch.nn.functional.pad(x, (0, -size % 8)) for x in (q, k, v))
    out, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, bounds_q, bounds_k, longest_q, longest_k, 0.0, causal, False, scale=scale
    )
    return out[..., :size]


def put_in(monkeypatch) -> Counter[str]:
    """Have transformers find these functions; gives the count of their calls."""
    from transformers import modeling_flash_attention_utils as flash
    from transformers.utils import import_utils

    package, padding = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.bert_padding")
    package.__version__, package.__path__, package.bert_padding = "2.8.3", [], padding
    for module in (package, padding):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    package.flash_attn_func, package.flash_attn_varlen_func = (
        flash_attn_func,
        flash_attn_varlen_func,
    )
    package.flash_attn_with_kvcache = None
    padding.pad_input, padding.unpad_input = flash._pad_input, flash._unpad_input
    monkeypatch.setitem(import_utils.PACKAGE_DISTRIBUTION_MAPPING, "flash_attn", ["flash-attn"])
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    import_utils.is_flash_attn_2_available.cache_clear()
    calls.clear()
    return calls


def take_out() -> None:
    """After the patches are undone: what transformers has remembered."""
    from transformers.utils import import_utils

    import_utils.is_flash_attn_2_available.cache_clear()
