"""The language model's part of a count: decoder layers and lm_head of a real transformers model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from scripts.efficiency.flops.traced import Call, count, meta, one_of
from scripts.efficiency.flops.work import Work


class LanguageModel:
    """Counts of a decoder on the meta device.

    Args:
        decoder: transformers' LlamaModel or Qwen2_5_VLTextModel.
        lm_head: its linear layer.
        axes: of a position: 1, or M-RoPE's 3.
    """

    def __init__(self, decoder: Any, lm_head: nn.Linear, axes: int = 1) -> None:
        self.decoder = decoder
        self.head = lm_head
        self.axes = axes

    def layers(self, positions: int) -> Work:
        # All layers have the same shapes (checked): one is counted, and multiplied.
        layer = Call(one_of(self.decoder.layers), **self._arguments(positions))
        return count(layer, meta(1, positions, self.head.in_features)) * len(self.decoder.layers)

    def lm_head(self, positions: int) -> Work:
        return count(self.head, meta(1, positions, self.head.in_features))

    def _arguments(self, positions: int) -> dict[str, Any]:
        """What a layer takes beside the hidden states, as transformers 4.37 and 5 hand it over."""
        ids = torch.empty(1, positions, dtype=torch.long, device="meta")
        # With a mask, 4.37's SDPA does not ask for the length, which is no number in a trace.
        arguments = {"attention_mask": meta(1, 1, positions, positions), "position_ids": ids}
        rotary = getattr(self.decoder, "rotary_emb", None)
        if rotary is not None:  # 5: rotated by tables that the decoder makes once for all layers
            ids = ids if self.axes == 1 else ids.expand(self.axes, -1, -1)
            arguments["position_embeddings"] = rotary(meta(1, positions, 1), ids)
        return arguments
