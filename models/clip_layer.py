"""A layer of transformers' CLIP, taken apart: scores before its output, the rest for kept tokens.

The modules (`layer_norm1`, `self_attn.q_proj`, ...) bear the same names in every version of
transformers that the adapters serve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hiprune.scores import received_attention


@dataclass(frozen=True)
class Look:
    """What is looked at of a layer's queries and keys.

    Attributes:
        names: "scores" (B, N), attention received; "cls_attention" (B, H, N), the CLS row of each
            head; "keys" (B, H, 1+N, D).
        of_cls: are the scores of CLS's attention, the first token's, alone? Else of all tokens'.
    """

    names: frozenset[str]
    of_cls: bool = False

    def __call__(self, attention: Any, query: Tensor, key: Tensor, **_: Any) -> dict[str, Tensor]:
        """Of what q_proj and k_proj of a CLIPAttention give, (B, 1+N, C_v) each."""
        return self.of_heads(heads(attention, query), heads(attention, key), attention.scale)

    @torch.no_grad()
    def of_heads(self, query: Tensor, key: Tensor, scale: float) -> dict[str, Tensor]:
        """Of (B, H, 1+N, D) each; CLS is dropped from what is told of tokens."""
        found = {}
        if "scores" in self.names:
            scored = query[:, :, :1] if self.of_cls else query
            found["scores"] = received_attention(scored, key, scale)[:, 1:]
        if "cls_attention" in self.names:
            first = query[:, :, :1].float() * scale  # (B, H, 1, D)
            with torch.autocast(key.device.type, enabled=False):
                logits = (first @ key.float().mT).squeeze(2)  # (B, H, 1+N)
            found["cls_attention"] = logits.softmax(dim=-1)[:, :, 1:]
        if "keys" in self.names:
            found["keys"] = key
        return found


def halves(
    layer: Any, hidden: Tensor, look: Look | None
) -> tuple[dict[str, Tensor] | None, Callable[[slice, Tensor], Tensor]]:
    """(B, 1+N, C_v) -> what a CLIPEncoderLayer is looked at for, and what runs the rest of it.

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

    return look and look.of_heads(query, key, attention.scale), rest


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
