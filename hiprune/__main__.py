"""``python -m hiprune -m MODULE``: see :mod:`hiprune.launcher`."""

import sys

from hiprune.launcher import main

if __name__ == "__main__":
    sys.exit(main())
