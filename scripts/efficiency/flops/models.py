"""counts_of: the counter, by fvcore, of an architecture on a picture."""

from __future__ import annotations

from scripts.efficiency.architectures import Architecture
from scripts.efficiency.flops.work import Counts, Picture


def counts_of(architecture: Architecture, picture: Picture) -> Counts:
    """Build the model on the meta device; Qwen2.5-VL needs transformers 5.17 or newer."""
    if architecture.family == "qwen2_5_vl":
        from scripts.efficiency.flops.qwen import QwenCounts

        return QwenCounts(architecture, picture)
    from scripts.efficiency.flops.llava import LlavaCounts

    return LlavaCounts(architecture, picture)
