"""Where the repository lies and how much is to be done: what every module here imports first.

As plain ``import paths`` it comes before modules of scripts/, which it lets Python find.

A notebook runs in this folder. ``NOTEBOOK_TINY=1``, which ``run_notebooks.sh --tiny`` sets, asks
for a few images, a few iterations and no network.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = os.environ.get("NOTEBOOK_TINY") == "1"
sys.path.insert(0, str(ROOT / "scripts"))


def shown(path: Path) -> str:
    """A path as a notebook may print it: from the repository's root, or as the user gave it."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
