"""lmms-eval's tasks, groups and tags by name, checked before the first run; and their data.

Its files are read as text, few of them where that will do: lmms-eval's own index of its thousands
takes longer than the rest of a start. Most tasks load their data with ``token=True``: without a
login to the hub even public data fail, but for what is in the cache already.

    python -m scripts.bench.registry TASK ...    prints {task: its data set} of those that cannot
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

import yaml

from scripts.benchmarks import ROOT

_KEY = re.compile(r"^[\"']?(task|group|tag)[\"']? *:(.*)$")
PAIRED = ("mme",)  # tasks of two questions an image, scored together
WHOLE = ("vinoground",)  # tasks whose scoring fails where a sample is missing
WHY = (
    "{data} is not on this machine, and without a login to the hub lmms-eval does not load it "
    "(`hf auth login`, or HF_TOKEN)"
)


@dataclass(frozen=True)
class Registry:
    """Name of a task -> its file; name of a group or tag -> the names of what it holds."""

    files: dict[str, Path] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)

    def tasks(self, name: str) -> list[str]:
        """The tasks that a name stands for: itself, or all of a group."""
        if name not in self.groups:
            return [name]
        return [task for part in self.groups[name] for task in self.tasks(part)]

    def check(self, names: Iterable[str], limit: int | None) -> None:
        """Raise a HiPruneError for what lmms-eval would refuse, some of it hours later."""
        from hiprune import HiPruneError  # with torch: seconds, which main() does without

        known = [*self.files, *self.groups]
        for name in names:
            if name not in self.files and name not in self.groups:
                near = get_close_matches(name, known, 3)
                suggestion = f" ({' or '.join(near)}?)" if near else ""
                raise HiPruneError(
                    f"TASKS: {name!r}: expected a task or group of lmms-eval{suggestion}; "
                    "`python -m lmms_eval --tasks list` has all"
                )
            whole = [task for task in self.tasks(name) if task in WHOLE]
            if whole and limit is not None:
                raise HiPruneError(
                    f"LIMIT='{limit}': expected none for {whole[0]}, of which lmms-eval scores all "
                    "samples together"
                )
            odd = [task for task in self.tasks(name) if task in PAIRED]
            if odd and limit is not None and limit % 2:
                raise HiPruneError(
                    f"LIMIT='{limit}': expected an even number for {odd[0]}, which scores the two "
                    "questions of an image together"
                )


def read_registry(names: Iterable[str]) -> Registry:
    """As much of lmms-eval's task files as tells of ``names``."""
    names, registry = set(names), Registry()
    mentioned = set()  # those that a file or template holds, in whatever form
    own = Path(find_spec("lmms_eval").origin).parent / "tasks"
    # Most tasks lie in a folder whose name theirs begins with: for them the rest is not read.
    likely = [f for f in own.iterdir() if any(name.startswith(f.name) for name in names)]
    for folder in (*likely, own):
        if folder == own and names <= registry.files.keys():
            break
        for path in folder.rglob("*yaml"):
            if folder != own or path.relative_to(own).parts[0] not in {f.name for f in likely}:
                text = path.read_text(encoding="utf-8-sig", errors="replace")
                mentioned.update(name for name in names if name in text)
                _add(registry, path, text)
    unknown = names - registry.files.keys() - registry.groups.keys()
    if not unknown & mentioned:
        return registry
    # One of few files in another form, or no task: lmms-eval's own index is slow, and decides.
    from lmms_eval.tasks import TaskManager
    from loguru import logger

    logger.disable("lmms_eval")  # a line for every file that is no task
    index = TaskManager("ERROR").task_index
    for name in names & index.keys():
        if isinstance(index[name].get("task"), list):
            registry.groups.setdefault(name, index[name]["task"])
        else:
            registry.files.setdefault(name, Path(str(index[name]["yaml_path"])))
    return registry


def _add(registry: Registry, path: Path, text: str) -> None:
    found = _values(text.splitlines())
    task, group = found.get("task"), found.get("group")
    if isinstance(task, str):
        registry.files.setdefault(task, path)
        for names in (group, found.get("tag")):
            for name in [names] if isinstance(names, str) else names or []:
                registry.groups.setdefault(name, []).append(task)
    elif task and isinstance(group, str):
        registry.groups[group] = task


def _values(lines: list[str]) -> dict[str, str | list[str]]:
    """The three keys at the left margin of a file: a word, or the list that follows."""
    found: dict[str, str | list[str]] = {}
    name = None  # whose list the lines are of
    for line in lines:
        key = _KEY.match(line)
        if key:
            name, value = key[1], _bare(key[2])
            if value.startswith("["):
                found[name] = [_bare(part) for part in value.strip("[]").split(",")]
            elif value:
                found[name] = value
        elif name and (item := re.match(r" *- *(?:task *:)?(.*)$", line)):
            if isinstance(found.setdefault(name, []), list):
                found[name].append(_bare(item[1]))
        elif line[:1] not in ("", " ", "#"):
            name = None
    return found


def _bare(text: str) -> str:
    """Without a comment and quotes."""
    return re.sub(r"(^|\s)#.*$", "", text).strip().strip("\"'")


def without_access(tasks: Iterable[str]) -> dict[str, str]:
    """Task -> why it cannot load its data; empty where there is a login."""
    from huggingface_hub import get_token

    tasks = list(dict.fromkeys(tasks))
    if not tasks or get_token() is not None:
        return {}
    # A process of its own: datasets reads the variable when it is imported.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "scripts"), "bench.registry", *tasks],
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


class _Loader(yaml.SafeLoader):
    """lmms-eval's own imports torch and what the task's functions need: seconds."""


_Loader.add_constructor("!function", lambda loader, node: node.value)


def read_config(path: Path) -> dict:
    """A task's file, over those that it includes; functions stay names."""
    config = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    included = config.get("include", [])
    for name in [included] if isinstance(included, str) else reversed(included):
        config = {**read_config(path.parent / name), **config}
    return config


def main() -> int:
    from datasets import load_dataset_builder

    missing = {}
    tasks = sys.argv[1:]
    files = read_registry(tasks).files
    for task, path in ((task, files[task]) for task in tasks if task in files):
        config = read_config(path)
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
