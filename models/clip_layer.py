"""A CLIP-like tower's layers, taken apart: scores before their output, the rest for kept tokens.

The modules of transformers' CLIP and SigLIP (`layer_norm1`, `self_attn.q_proj`, ...) bear the same
names in every version that the adapters serve; InternViT's bear others, it normalises queries and
keys, and scales what each half adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hiprune.scores import received_attention

_INTERNVIT = {
    "self_attn": "attention",
    "layer_norm1": "layernorm_before",
    "layer_norm2": "layernorm_after",
    "out_proj": "projection_layer",
}


def part(module: Any, name: str) -> Any:
    """A layer's module, or its attention's, by CLIP's name for it."""
    return getattr(module, name if hasattr(module, name) else _INTERNVIT[name])


@dataclass(frozen=True)
class Look:
    """What is looked at of a layer's queries and keys.

    Attributes:
        names: "scores" (B, patches), attention received; "cls_attention" (B, H, patches), the CLS
            row of each head; "keys" (B, H, E+patches, D).
        of_cls: are the scores of CLS's attention, the first token's, alone? Else of all tokens'.
        extra: E.
    """

    names: frozenset[str]
    of_cls: bool = False
    extra: int = 1

    def __call__(self, attention: Any, query: Tensor, key: Tensor, **_: Any) -> dict[str, Tensor]:
        """Of what q_proj and k_proj of a layer's attention give, (B, E+patches, C_v) each."""
        query, key = heads(attention, query, "q_norm"), heads(attention, key, "k_norm")
        return self.of_heads(query, key, attention.scale)

    @torch.no_grad()
    def of_heads(self, query: Tensor, key: Tensor, scale: float) -> dict[str, Tensor]:
        """Of (B, H, E+patches, D) each; extra tokens are dropped from what is told of tokens."""
        found = {}
        if "scores" in self.names:
            scored = query[:, :, :1] if self.of_cls else query
            found["scores"] = received_attention(scored, key, scale)[:, self.extra :]
        if "cls_attention" in self.names:
            first = query[:, :, :1].float() * scale  # (B, H, 1, D)
            with torch.autocast(key.device.type, enabled=False):
                logits = (first @ key.float().mT).squeeze(2)  # (B, H, E+patches)
            found["cls_attention"] = logits.softmax(dim=-1)[:, :, self.extra :]
        if "keys" in self.names:
            found["keys"] = key
        return found


def halves(
    layer: Any, hidden: Tensor, look: Look | None
) -> tuple[dict[str, Tensor] | None, Callable[[slice, Tensor], Tensor]]:
    """(B, E+N, C_v) -> what a layer is looked at for, and what runs the rest of it.

    That takes rows of the batch, B' in number, and (B', P) places among the E+N tokens, and gives
    (B', P, C_v): what a token becomes depends on all keys and values but on its own query alone.
    """
    attention = part(layer, "self_attn")
    normed = part(layer, "layer_norm1")(hidden)
    query, key, value = _queries_keys_values(attention, normed)
    hidden = hidden.to(normed.device)

    def rest(rows: slice, kept: Tensor) -> Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(
            gather(query[rows], kept), key[rows], value[rows], scale=attention.scale
        )  # (B', H, P, D)
        out = part(attention, "out_proj")(out.transpose(1, 2).flatten(2))
        tokens = gather(hidden[rows], kept) + _scaled(layer, "lambda_1", out)
        out = layer.mlp(part(layer, "layer_norm2")(tokens))
        return tokens + _scaled(layer, "lambda_2", out)

    return look and look.of_heads(query, key, attention.scale), rest


def fused_attention(attention: Any, hidden: Tensor) -> Tensor:
    """(B, 1+N, C_v) -> what a CLIPAttention of transformers 4.37 gives, without an N x N map."""
    out = torch.nn.functional.scaled_dot_product_attention(
        *_queries_keys_values(attention, hidden),
        dropout_p=attention.dropout if attention.training else 0.0,
        scale=attention.scale,
    )
    return attention.out_proj(out.transpose(1, 2).flatten(2))


def _queries_keys_values(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, C_v) -> (B, H, T, D) each."""
    query = heads(attention, attention.q_proj(hidden), "q_norm")
    key = heads(attention, attention.k_proj(hidden), "k_norm")
    return query, key, heads(attention, attention.v_proj(hidden))


def heads(attention: Any, x: Tensor, norm: str = "") -> Tensor:
    """(B, T, C_v) -> (B, H, T, D); ``norm``: name of what InternViT normalises them by."""
    x = getattr(attention, norm)(x) if hasattr(attention, norm) else x
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def _scaled(layer: Any, name: str, x: Tensor) -> Tensor:
    return getattr(layer, name) * x if hasattr(layer, name) else x


def gather(tokens: Tensor, kept: Tensor) -> Tensor:
    """(B', ..., T, D) and (B', P) -> (B', ..., P, D)."""
    index = kept.to(tokens.device).view(len(kept), *[1] * (tokens.ndim - 3), -1, 1)
    return tokens.gather(-2, index.expand(*tokens.shape[:-2], -1, tokens.shape[-1]))


def norm_of(vision: Any) -> Any:
    """The tower's, after its last layer."""
    inner = transformer_of(vision)
    return inner.layernorm if hasattr(inner, "layernorm") else inner.post_layernorm


def drops_out(layer: Any) -> bool:
    """Would running it in another way draw other random numbers?"""
    attention = part(layer, "self_attn")
    name = "dropout" if hasattr(attention, "dropout") else "attention_dropout"
    return (attention.training and getattr(attention, name) > 0) or any(
        isinstance(each, torch.nn.Dropout) and each.training and each.p > 0
        for each in layer.modules()
    )


def layers_of(vision: Any) -> torch.nn.ModuleList:
    encoder = transformer_of(vision).encoder
    return encoder.layers if hasattr(encoder, "layers") else encoder.layer


def patch_columns(vision: Any) -> int:
    """Patches of a view's side."""
    sizes = (vision.config.image_size, vision.config.patch_size)
    side, patch = (size if isinstance(size, int) else size[0] for size in sizes)
    return side // patch


def transformer_of(vision: Any) -> Any:
    """What of a CLIPVisionModel has the layers: the model itself since transformers 5."""
    return getattr(vision, "vision_model", vision)
