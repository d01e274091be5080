"""Which lmms-eval tasks cannot load their data, for want of a login to the hub.

Most of lmms-eval's tasks load their data with ``token=True``: without a login even public data
fail, but for what is in the cache already.

    python scripts/hub_access.py TASK ...    prints {task: its data set} of those that cannot
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

WHY = (
    "{data} is not on this machine, and without a login to the hub lmms-eval does not load it "
    "(`hf auth login`, or HF_TOKEN)"
)


def without_access(tasks: Iterable[str]) -> dict[str, str]:
    """Task -> why it cannot load its data; empty where there is a login."""
    from huggingface_hub import get_token

    tasks = list(dict.fromkeys(tasks))
    if not tasks or get_token() is not None:
        return {}
    # A process of its own: datasets reads the variable when it is imported.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *tasks],
        env={**os.environ, "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:  # the runs will tell what is wrong
        return {}
    found = json.loads(done.stdout.splitlines()[-1])
    return {task: WHY.format(data=data) for task, data in found.items()}


def task_files(names: Iterable[str]) -> dict[str, Path]:
    """Name -> the file that defines the task, for those of lmms-eval's own."""
    # Read as text: lmms-eval's own index of its thousands of files takes longer than the rest.
    folder = Path(find_spec("lmms_eval").origin).parent / "tasks"
    line = re.compile(rf"^task:\s*[\"']?({'|'.join(map(re.escape, names))})[\"']?\s*$", re.M)
    found = {}
    for path in folder.rglob("*.yaml"):
        named = line.search(path.read_text(encoding="utf-8"))
        if named:
            found[named[1]] = path
    return found


def needs_login(config: Mapping) -> bool:
    """Does a task with this configuration ask the hub for its data, by name?"""
    arguments = config.get("dataset_kwargs") or {}
    return bool(arguments.get("token")) and not arguments.get("load_from_disk")


def main() -> int:
    from datasets import load_dataset_builder
    from lmms_eval.utils import load_yaml_config

    missing = {}
    for task, path in task_files(sys.argv[1:]).items():
        config = load_yaml_config(yaml_path=str(path), mode="simple")
        if not needs_login(config):
            continue
        data, part = config["dataset_path"], config.get("dataset_name")
        try:
            load_dataset_builder(data, part)
        except Exception:  # whatever it is that datasets raises for what it does not find
            missing[task] = f"data set {data}" + (f" ({part})" if part else "")
    print(json.dumps(missing))
    return 0


if __name__ == "__main__":
    sys.exit(main())
