"""python scripts/show_tokens.py IMAGE ...: the same as hiprune show IMAGE ..."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, in place of this folder

from hiprune.show.__main__ import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(program="show_tokens.py"))
