"""``python -m hiprune``: the command ``hiprune``, see :mod:`hiprune.command`."""

import sys

from hiprune.command import main

if __name__ == "__main__":
    sys.exit(main())
