"""The tokens that CLS attends to most in the output layer, which are what FasterVLM keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hiprune.methods.base import Images, Method, highest
from hiprune.selection import TokenSelection


@dataclass
class Cls(Method):
    name: ClassVar = "cls"
    needs: ClassVar = ("cls_attention",)

    def choose(self, images: Images, cls_attention: Tensor) -> TokenSelection:
        return highest(cls_attention.float().mean(dim=1), images)  # (B, H, N) -> (B, N)
