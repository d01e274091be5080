"""``hiprune show``: pictures, which of their visual tokens are kept, and what a model answers."""

from hiprune.show.checkpoints import Checkpoint, find_checkpoint
from hiprune.show.drawing import answer, draw

__all__ = ["Checkpoint", "answer", "draw", "find_checkpoint"]
