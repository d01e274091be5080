"""Let lmms-eval index few tasks: to read all of its thousands takes most of a small evaluation.

With this folder on PYTHONPATH, processes that run lmms-eval know POPE and the tasks of their
--include_path. They look for garbage in nothing that they import, which takes seconds as well.
"""

import gc
import sys
from functools import partial
from pathlib import Path


def few_tasks(manager, verbosity, include_path=None, **settings):
    """A ``manager``, which is lmms-eval's TaskManager, of these."""
    from lmms_eval import tasks

    own = str(Path(tasks.__file__).parent / "pope")
    paths = [own, *filter(None, [include_path])]
    return manager(verbosity, include_path=paths, include_defaults=False, **settings)


words = sys.orig_argv
if "-m" in words and words[words.index("-m") + 1] == "lmms_eval":
    gc.disable()
    import lmms_eval.__main__ as program

    gc.freeze()
    gc.enable()
    program.TaskManager = partial(few_tasks, program.TaskManager)
