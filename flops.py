"""FLOPs of the released models, unpruned and at every budget, counted without weights.

python flops.py                                     # all models, budgets and conventions
python flops.py --model llava-1.5-7b --json flops.json
"""

import sys

from scripts.efficiency.flops.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
