"""python path/to/scripts NAME [ARGUMENT ...]: ``python -m scripts.NAME`` from any folder."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
place = HERE.joinpath(*name.split("."))
if not name or (not (place / "__main__.py").is_file() and not place.with_suffix(".py").is_file()):
    programs = ", ".join(sorted(path.parent.name for path in HERE.glob("*/__main__.py")))
    sys.exit(f"NAME={name!r}: expected {programs}, or a module in one of the folders")
sys.path[0] = str(HERE.parent)  # the repository, in place of this folder
runpy.run_module(f"scripts.{name}", run_name="__main__", alter_sys=True)
