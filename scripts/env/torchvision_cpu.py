"""Have torchvision import beside a CPU-only torch, in the environment that runs this file.

torchvision's wheel on PyPI is built for CUDA. Beside a CPU-only torch its compiled operators do
not load, and its import stops where it describes two of them to the tracer. Everything else is
Python and works. This file puts a module of our own into the environment that declares these
operators just before torchvision looks for them; torchvision's files are not touched. Where the
operators do load, nothing is done.

    python scripts/torchvision_cpu.py
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

MODULE = "_torchvision_without_operators"
SOURCE = '''"""Declares torchvision's compiled operators where they cannot load (CPU-only torch)."""

import sys

SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class _BeforeMetaRegistrations:
    """Finds nothing; it is asked for each module, and acts when this one is about to load."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            import torch

            for operator, schema in SCHEMAS.items():
                if not hasattr(torch.ops.torchvision, operator):
                    torch.library.define(f"torchvision::{operator}", schema)
        return None


sys.meta_path.insert(0, _BeforeMetaRegistrations())
'''


def main() -> None:
    if _imports():
        return
    site = Path(sysconfig.get_paths()["purelib"])
    (site / f"{MODULE}.py").write_text(SOURCE)
    (site / f"{MODULE}.pth").write_text(f"import {MODULE}\n")
    if not _imports(show=True):
        raise SystemExit("torchvision: still does not import; see the error above")
    print("torchvision: imports without its compiled operators (CPU-only torch)")


def _imports(show: bool = False) -> bool:
    """Whether a fresh interpreter of this environment can import torchvision."""
    command = [sys.executable, "-c", "import torchvision.transforms"]
    return subprocess.run(command, stderr=None if show else subprocess.DEVNULL).returncode == 0


if __name__ == "__main__":
    main()
