"""python scripts/train_tiny.py --output FOLDER ...: the same as python -m scripts.tiny."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, in place of this folder
runpy.run_module("scripts.tiny", run_name="__main__")
