"""The models' own layers, computed for training: all images in one batch, shared prefixes.

Same weights and same numbers as the transformers modules (the tests compare them); what differs is
the order of the work. A Qwen tower's windows become a batch, and the questions about an image share
the pass over the prompt's prefix, of which the image is the longest part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(..., N, D) x 3 -> (..., N, D): attention over all keys."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return scores.softmax(dim=-1).to(value.dtype) @ value


def rms_norm(norm: nn.Module, states: Tensor) -> Tensor:
    """Root mean square norm of Llama and Qwen modules, in float32."""
    wide = states.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * wide


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: (..., N, D) with (N, D) angles."""
    first, second = states.chunk(2, dim=-1)
    return (states * cos + torch.cat([-second, first], dim=-1) * sin).to(states.dtype)


def heads_of(states: Tensor, dim: int) -> Tensor:
    """(..., N, H * dim) -> (..., H, N, dim)."""
    return states.unflatten(-1, (-1, dim)).transpose(-2, -3)


def merge_heads(states: Tensor) -> Tensor:
    """(..., H, N, D) -> (..., N, H * D)."""
    return states.transpose(-2, -3).flatten(-2)


def clip_layer(layer: nn.Module, states: Tensor) -> Tensor:
    """One CLIP encoder layer on (B, N, C)."""
    attention = layer.self_attn
    inputs = layer.layer_norm1(states)
    query, key, value = (
        heads_of(projection(inputs), attention.head_dim)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    states = states + attention.out_proj(merge_heads(attend(query, key, value)))
    hidden = layer.mlp.fc1(layer.layer_norm2(states))
    return states + layer.mlp.fc2(hidden * torch.sigmoid(1.702 * hidden))  # CLIP's "quick" GELU


def qwen_block(block: nn.Module, states: Tensor, cos: Tensor, sin: Tensor, windows: int) -> Tensor:
    """One block of Qwen2.5-VL's tower on (B, N, C), N in window order.

    Args:
        cos, sin: (N, D) angles of the positions.
        windows: how many of equal size attend each to itself; 1 is full attention.
    """
    attention = block.attn
    qkv = attention.qkv(rms_norm(block.norm1, states))
    query, key, value = (heads_of(part, attention.head_dim) for part in qkv.chunk(3, dim=-1))
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)  # (B, H, N, D)
    if windows > 1:
        query, key, value = (part.unflatten(2, (windows, -1)) for part in (query, key, value))
        mixed = attend(query, key, value).flatten(2, 3)
    else:
        mixed = attend(query, key, value)
    states = states + attention.proj(merge_heads(mixed))
    inputs, mlp = rms_norm(block.norm2, states), block.mlp
    return states + mlp.down_proj(F.silu(mlp.gate_proj(inputs)) * mlp.up_proj(inputs))


def decoder_layer(
    layer: nn.Module, states: Tensor, cos: Tensor, sin: Tensor, prefix: int, length: int
) -> Tensor:
    """One Llama or Qwen2 decoder layer on (B, P + Q * T, C): a prefix and Q questions after it.

    A question sees the prefix and itself, as if the others were not there.

    Args:
        cos, sin: (P + Q * T, D) angles; every question's positions go on after the prefix.
        prefix: P.
        length: T, tokens of each question.
    """
    attention = layer.self_attn
    inputs = rms_norm(layer.input_layernorm, states)
    dim = attention.head_dim
    query, key, value = (
        heads_of(projection(inputs), dim)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    query = query * dim**-0.5

    # By split, not by slices: their gradients need no zeros around them.
    sizes = [prefix, states.shape[1] - prefix]
    first_query, own_query = query.split(sizes, dim=2)
    first_key, own_key = key.split(sizes, dim=2)
    first_value, own_value = value.split(sizes, dim=2)
    scores = first_query @ first_key.transpose(-1, -2)
    mixed = (scores + later(prefix, scores)).softmax(-1).to(value.dtype) @ first_value

    shared = own_query @ first_key.transpose(-1, -2)  # (B, H, Q * T, P)
    own_query, own_key, own_value = (
        part.unflatten(2, (-1, length)) for part in (own_query, own_key, own_value)
    )  # (B, H, Q, T, D)
    own = own_query @ own_key.transpose(-1, -2)
    own = (own + later(length, own)).flatten(2, 3)  # (B, H, Q * T, T)
    weights = torch.cat([shared, own], dim=-1).softmax(-1).to(value.dtype)
    shared, own = weights.split([prefix, length], dim=-1)
    answers = (own.unflatten(2, (-1, length)) @ own_value).flatten(2, 3) + shared @ first_value

    states = states + attention.o_proj(merge_heads(torch.cat([mixed, answers], dim=2)))
    inputs, mlp = rms_norm(layer.post_attention_layernorm, states), layer.mlp
    return states + mlp.down_proj(F.silu(mlp.gate_proj(inputs)) * mlp.up_proj(inputs))


def later(length: int, like: Tensor) -> Tensor:
    """(length, length): 0 where a token may look, a large negative number at later tokens."""
    hidden = torch.full((length, length), -3e4, device=like.device, dtype=like.dtype)
    return hidden.triu(1)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """(N,) -> (N, width) sines and cosines, wavelengths of 2 to 40 tokens."""
    waves = 2 * torch.pi / torch.logspace(0.35, 1.6, width // 2)
    angles = positions[:, None] * waves
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def grid_positions(columns: int, width: int) -> Tensor:
    """(columns * columns, width): row and column of each token as sinusoids."""
    line = sinusoids(torch.arange(columns, dtype=torch.float32), width // 2)
    rows = line[:, None].expand(-1, columns, -1)
    across = line[None].expand(columns, -1, -1)
    return torch.cat([rows, across], dim=-1).flatten(0, 1)
