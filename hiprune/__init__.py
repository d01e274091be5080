"""HiPrune: training-free visual token pruning for vision-language models (arXiv:2508.00553)."""

from pathlib import Path as _Path

# In a clone, which Python run from there finds first, hiprune.models lies beside this folder.
if not _Path(__file__).with_name("models").is_dir():
    __path__.append(str(_Path(__file__).parents[1]))

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.figures import analysis
from hiprune.figures.maps import received_attention_maps
from hiprune.handle import PruneHandle

# The function, in the place of the subpackage's name: `from hiprune.methods import ...` finds that.
from hiprune.methods import choose_tokens, methods
from hiprune.models.clip_text import ClipText
from hiprune.patching import apply, prune
from hiprune.scores import received_attention
from hiprune.selection import TokenSelection, select_tokens

__version__ = "0.2.0"
__all__ = [
    "ClipText",
    "HiPruneConfig",
    "HiPruneError",
    "PruneHandle",
    "TokenSelection",
    "analysis",
    "apply",
    "choose_tokens",
    "methods",
    "prune",
    "received_attention",
    "received_attention_maps",
    "select_tokens",
]
