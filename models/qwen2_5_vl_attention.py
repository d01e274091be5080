"""Qwen2.5-VL's vision attention: its queries and keys, and how a block of it is scored."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hiprune.capture import ScoredLayer
from hiprune.scores import received_attention_packed


def rotated(attention: Any, qkv: Tensor, position_embeddings: Any) -> tuple[Tensor, ...]:
    """(4 N, 3 C_v) -> queries and keys, rotated, and values, (H, 4 N, D) each."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

    query, key, value = qkv.unflatten(-1, (3, attention.num_heads, -1)).unbind(1)  # (4 N, H, D)
    query, key = qwen.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    return query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)


def scored_layer(attention: Any) -> ScoredLayer:
    """A Qwen2_5_VLVisionAttention: queries and keys out of its qkv, rotated, per segment."""

    def score(qkv: Tensor, *, cu_seqlens: Tensor, position_embeddings: Any, **_: Any) -> Tensor:
        query, key, _ = rotated(attention, qkv, position_embeddings)
        return received_attention_packed(query, key, cu_seqlens, attention.scaling)

    return ScoredLayer(attention, (attention.qkv,), score)
