"""Where the repository lies and how much is to be done: what every module here imports first.

As plain ``import paths`` it comes before modules of scripts/, which it lets Python find.

A notebook runs in this folder. ``NOTEBOOK_TINY=1``, which ``run_notebooks.sh --tiny`` sets, asks
for a few images, a few iterations and no network. ``NOTEBOOK_FROM`` is the folder that the script
runs in, where relative folders in variables begin.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = os.environ.get("NOTEBOOK_TINY") == "1"
FROM = Path(os.environ.get("NOTEBOOK_FROM", ""))
sys.path.insert(0, str(ROOT))


def variable(name: str) -> Path | None:
    """The folder that an environment variable names; None: it is not set, or empty."""
    value = os.environ.get(name)
    return FROM / value if value else None


def shown(path: Path | str) -> str:
    """A path as a notebook may keep it: as the user spelt it, or from the repository's root.

    Of an absolute one elsewhere the name alone, since a notebook is read on other machines.
    """
    path = Path(path)
    for start in (FROM, ROOT):
        if path.is_relative_to(start):
            path = path.relative_to(start)
    return path.name if path.is_absolute() else str(path)
