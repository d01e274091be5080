"""The program of the stand-in's test, in a process that knows the stand-in hub alone.

    python -m standin.evaluate < PLAN

Several starts of a bench script, one after the other, with all their evaluations in this process:
to start one and import all of it takes longer than the small model does. Writes a JSON line for
each: [exit status, what it printed]. The plan is a JSON object:

    script, arguments    of all starts
    said                 task -> the answers to prescribe, in the order of the data
    starts               the variables of each start; "prescribed": from here on; "login": false
                         for a user who has none
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import ClassVar

import lmms_eval.__main__
from bench_in_process import bench_here
from lmms_eval.tasks import TaskManager

FOLDERS = ("gqa", "mme", "pope", "scienceqa", "vizwiz_vqa", "textvqa", "mmbench")


class PapersTasks(TaskManager):
    """The tasks that the paper takes, read once: all of lmms-eval's thousands take a minute."""

    index: ClassVar[dict[str, dict]] = {}

    def initialize_tasks(self, include_path=None, include_defaults=True) -> dict[str, dict]:
        tasks = Path(sys.modules[TaskManager.__module__].__file__).parent
        if not self.index:
            paths = [str(tasks / name) for name in FOLDERS]
            self.index.update(super().initialize_tasks(paths, include_defaults=False))
        return dict(self.index)


def prescribe(said: dict[str, list[str]]) -> None:
    """Have the model of lmms-eval run as it does, and give other answers than it does."""
    from hiprune.lmms.base import PrunedLmms

    original = PrunedLmms.generate_until

    def generate_until(self, requests: list) -> list[str]:
        original(self, requests)
        return [said[request.task_name][request.doc_id] for request in requests]

    PrunedLmms.generate_until = generate_until


def main() -> None:
    plan = json.load(sys.stdin)
    from lmms_eval.tasks.mmbench import mmbench_evals

    mmbench_evals.time = type("Time", (), {"sleep": staticmethod(lambda seconds: None)})
    lmms_eval.__main__.TaskManager = PapersTasks
    gc.freeze()
    gc.enable()
    gc.collect = lambda generation=2: 0  # asked for often, and dear with all that is imported
    for start in plan["starts"]:
        if start.pop("prescribed", False):
            prescribe(plan["said"])
        login = start.pop("login", True)
        os.environ.pop("HF_TOKEN", None)
        if login:
            os.environ["HF_TOKEN"] = "hf_any"
        result = bench_here(plan["script"], *plan["arguments"], **start)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
