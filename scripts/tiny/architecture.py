"""The tiny models by name."""

from __future__ import annotations

from pathlib import Path

from scripts.tiny.llava import LlavaNextTrainee, LlavaTrainee
from scripts.tiny.qwen import QwenTrainee
from scripts.tiny.trainee import Trainee

MAKERS = {maker.family: maker for maker in (LlavaTrainee, LlavaNextTrainee, QwenTrainee)}
FAMILIES = tuple(MAKERS)


def make_trainee(family: str, directory: Path) -> Trainee:
    """A model with fresh weights; its tokenizer's file is written to ``directory``."""
    if family not in MAKERS:
        raise SystemExit(f"family={family!r}: expected one of {', '.join(FAMILIES)}")
    return MAKERS[family](directory)
