"""A layer of transformers' CLIP, taken apart: scores before its output, the rest for kept tokens.

The modules (`layer_norm1`, `self_attn.q_proj`, ...) bear the same names in every version of
transformers that the adapters serve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hiprune.scores import received_attention


def score(scored_queries: slice, attention: Any, query: Tensor, key: Tensor, **_: Any) -> Tensor:
    """What q_proj and k_proj of a CLIPAttention give, (B, 1+N, C_v) each -> (B, 1+N)."""
    query, key = heads(attention, query)[:, :, scored_queries], heads(attention, key)
    return received_attention(query, key, attention.scale)


def halves(
    layer: Any, hidden: Tensor, scored_queries: slice
) -> tuple[Tensor, Callable[[slice, Tensor], Tensor]]:
    """(B, 1+N, C_v) -> scores of a CLIPEncoderLayer, (B, 1+N), and what runs the rest of it.

    That takes rows of the batch, B' in number, and (B', N') places among the 1+N tokens, and gives
    (B', N', C_v): what a token becomes depends on all keys and values but on its own query alone.
    """
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)
    query, key, value = (
        heads(attention, projection(normed))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    hidden = hidden.to(normed.device)

    def rest(rows: slice, kept: Tensor) -> Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(
            gather(query[rows], kept), key[rows], value[rows], scale=attention.scale
        )  # (B', H, N', D)
        tokens = gather(hidden[rows], kept) + attention.out_proj(out.transpose(1, 2).flatten(2))
        return tokens + layer.mlp(layer.layer_norm2(tokens))

    return received_attention(query[:, :, scored_queries], key, attention.scale), rest


def fused_attention(attention: Any, hidden: Tensor) -> Tensor:
    """(B, 1+N, C_v) -> what a CLIPAttention of transformers 4.37 gives, without an N x N map."""
    out = torch.nn.functional.scaled_dot_product_attention(
        *(
            heads(attention, projection(hidden))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        ),
        dropout_p=attention.dropout if attention.training else 0.0,
        scale=attention.scale,
    )
    return attention.out_proj(out.transpose(1, 2).flatten(2))


def heads(attention: Any, x: Tensor) -> Tensor:
    """(B, T, C_v) -> (B, H, T, D)."""
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def gather(tokens: Tensor, kept: Tensor) -> Tensor:
    """(B', ..., T, D) and (B', N') -> (B', ..., N', D)."""
    index = kept.to(tokens.device).view(len(kept), *[1] * (tokens.ndim - 3), -1, 1)
    return tokens.gather(-2, index.expand(*tokens.shape[:-2], -1, tokens.shape[-1]))
