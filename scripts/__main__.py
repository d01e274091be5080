"""python path/to/scripts NAME [ARGUMENT ...]: ``python -m scripts.NAME`` from any folder."""

import runpy
import sys
from pathlib import Path

if len(sys.argv) < 2:
    sys.exit("usage: python scripts NAME [ARGUMENT ...]; expected a program, such as tables")
sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, in place of this folder
name = f"scripts.{sys.argv.pop(1)}"
runpy.run_module(name, run_name="__main__", alter_sys=True)
