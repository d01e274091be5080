"""python scripts/convert_hf_to_llava.py ...: the same as python -m scripts.convert to_llava ..."""

import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, in place of this folder
sys.argv.insert(1, "to_llava")
runpy.run_module("scripts.convert", run_name="__main__")
