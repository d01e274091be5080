"""python scripts/make_tables.py LOGS ...: the same as python -m scripts.tables."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, in place of this folder
runpy.run_module("scripts.tables", run_name="__main__")
