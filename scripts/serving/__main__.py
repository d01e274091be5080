"""python -m scripts.serving: the serving benchmark."""

import sys

from scripts.serving.bench import main

if __name__ == "__main__":
    sys.exit(main())
