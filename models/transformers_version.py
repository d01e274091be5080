"""The versions of transformers whose own models the adapters here know."""

from __future__ import annotations

from hiprune.errors import HiPruneError

FIRST, NEXT_MAJOR = (5, 17), 6


def require_transformers() -> None:
    """Raise a HiPruneError that names the range, outside of 5.17 to 5.x."""
    import transformers

    found = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if not FIRST <= found < (NEXT_MAJOR, 0):
        raise HiPruneError(
            f"transformers {transformers.__version__}: expected {FIRST[0]}.{FIRST[1]} to "
            f"{NEXT_MAJOR - 1}.x for transformers' own models (setup_qwen.sh installs one)"
        )
