"""A layer of transformers' CLIP, taken apart: scores before its output, the rest for kept tokens.

The modules (`layer_norm1`, `self_attn.q_proj`, ...) bear the same names in every version of
transformers that the adapters serve.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hiprune.scores import received_attention


@dataclass(frozen=True)
class ScoredHalf:
    """A layer that has run up to its scores.

    Attributes:
        score: (B, 1+N) float32, the attention that each token receives.
        hidden: (B, 1+N, C_v), what went into the layer.
        query, key, value: (B, H, 1+N, D).
    """

    score: Tensor
    hidden: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


def score_half(layer: Any, hidden: Tensor, scored_queries: slice) -> ScoredHalf:
    """(B, 1+N, C_v) -> queries, keys and values of a CLIPEncoderLayer, and its scores."""
    weight = layer.layer_norm1.weight
    if weight.device.type != "meta":  # where weights are offloaded, accelerate moves the input
        hidden = hidden.to(weight.device)
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)
    query, key, value = (
        heads(attention, projection(normed))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    score = received_attention(query[:, :, scored_queries], key, attention.scale)
    return ScoredHalf(score, hidden.to(normed.device), query, key, value)


def finish_half(layer: Any, half: ScoredHalf, rows: slice, kept: Tensor) -> Tensor:
    """The rest of the layer, for some of its tokens.

    What a token becomes depends on all keys and values but on its own query alone.

    Args:
        layer: the CLIPEncoderLayer that ``half`` came from.
        rows: of the batch, B' in number.
        kept: (B', N') places among the 1+N tokens.

    Returns:
        (B', N', C_v).
    """
    attention = layer.self_attn
    kept = kept.to(half.hidden.device)
    query = gather(half.query[rows], kept)  # (B', H, N', D)
    out = torch.nn.functional.scaled_dot_product_attention(
        query, half.key[rows], half.value[rows], scale=attention.scale
    )
    out = out.transpose(1, 2).flatten(2)  # (B', H, N', D) -> (B', N', C_v)
    hidden = gather(half.hidden[rows], kept) + attention.out_proj(out)
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def sdpa_forward(
    attention: Any, wanted: Callable[[], bool], original: Callable[..., Any]
) -> Callable[..., Any]:
    """A forward for the CLIPAttention of transformers 4.37, which knows eager attention alone.

    The same result by torch's fused kernel while it is ``wanted``; else, and where the maps
    themselves are asked for, the module's ``original`` forward.
    """

    @functools.wraps(original)
    def forward(
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        causal_attention_mask: Tensor | None = None,
        output_attentions: bool | None = False,
    ) -> tuple[Tensor, Tensor | None]:
        if output_attentions or causal_attention_mask is not None or not wanted():
            return original(hidden_states, attention_mask, causal_attention_mask, output_attentions)
        query, key, value = (
            heads(attention, projection(hidden_states))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        out = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            dropout_p=attention.dropout if attention.training else 0.0,
            scale=attention.scale,
        )
        return attention.out_proj(out.transpose(1, 2).flatten(2)), None

    return forward


def heads(attention: Any, x: Tensor) -> Tensor:
    """(B, T, C_v) -> (B, H, T, D)."""
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def gather(tokens: Tensor, kept: Tensor) -> Tensor:
    """(B', ..., T, D) and (B', N') -> (B', ..., N', D)."""
    index = kept.view(len(kept), *[1] * (tokens.ndim - 3), -1, 1)
    return tokens.gather(-2, index.expand(*tokens.shape[:-2], -1, tokens.shape[-1]))
