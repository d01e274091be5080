"""Which lmms-eval tasks cannot load their data, for want of a login to the hub.

Most of lmms-eval's tasks load their data with ``token=True``: without a login even public data
fail, but for what is in the cache already.

    python -m scripts.bench.hub_access TASK ...    prints {task: its data set} of those that cannot
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping

from scripts.bench.registry import read_registry
from scripts.benchmarks import ROOT

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
        [sys.executable, "-W", "ignore", str(ROOT / "scripts"), "bench.hub_access", *tasks],
        env={**os.environ, "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:  # the runs will tell what is wrong
        return {}
    found = json.loads(done.stdout.splitlines()[-1])
    return {task: WHY.format(data=data) for task, data in found.items()}


def needs_login(config: Mapping) -> bool:
    """Does a task with this configuration ask the hub for its data, by name?"""
    arguments = config.get("dataset_kwargs") or {}
    return bool(arguments.get("token")) and not arguments.get("load_from_disk")


def main() -> int:
    from datasets import load_dataset_builder
    from lmms_eval.utils import load_yaml_config

    missing = {}
    tasks = sys.argv[1:]
    files = read_registry(tasks).files
    for task, path in ((task, files[task]) for task in tasks if task in files):
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
