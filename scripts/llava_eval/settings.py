"""Check the budgets of a run and name their folders: one line per budget, in order.

    python -m scripts.llava_eval.settings unpruned 192 128 64
    python -m scripts.llava_eval.settings --cuda     # status 0: there is a GPU for llava.eval

A finished run is kept, so whatever changes its answers is part of the folder's name.
"""

from __future__ import annotations

import os
import sys

import torch

from hiprune import HiPruneConfig, HiPruneError
from hiprune.launcher import check_environment

UNPRUNED = "unpruned"


def folder(budget: str) -> str:
    """ "unpruned", or N', alpha, l and what else differs from the paper's method, as HIPRUNE_*
    variables give them.

    Raises:
        HiPruneError: a budget or a variable that no LLaVA model accepts.
    """
    if budget == UNPRUNED:
        return UNPRUNED
    environ = {**os.environ, "HIPRUNE_RETENTION": budget}
    check_environment(environ)
    # LLaVA-NeXT's bounds include LLaVA-1.5's; the model's own are checked when it is loaded.
    config = HiPruneConfig.from_env("llava_next", environ)
    variant = "".join(f"_{name}-{value}" for name, value in config.variant().items())
    layer = config.object_layer
    return f"retention-{config.retention}_alpha-{config.alpha}_layer-{layer}{variant}"


def main() -> int:
    if sys.argv[1:] == ["--cuda"]:
        if torch.cuda.is_available():
            return 0
        print("no CUDA GPU, which the modules of llava.eval need; bench_llava.sh does without one")
        return 1
    try:
        folders = [folder(budget) for budget in sys.argv[1:]]
    except HiPruneError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(folders))
    return 0


if __name__ == "__main__":
    sys.exit(main())
