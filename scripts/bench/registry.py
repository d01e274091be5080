"""lmms-eval's tasks, groups and tags by name, checked before the first run.

Its files are read as text, few of them where that will do: lmms-eval's own index of its thousands
takes longer than the rest of a start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from hiprune import HiPruneError

_KEY = re.compile(r"^[\"']?(task|group|tag)[\"']? *:(.*)$")
PAIRED = ("mme",)  # tasks of two questions an image, scored together


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
        known = [*self.files, *self.groups]
        for name in names:
            if name not in self.files and name not in self.groups:
                near = get_close_matches(name, known, 3)
                said = f" ({' or '.join(near)}?)" if near else ""
                raise HiPruneError(
                    f"TASKS: {name!r}: expected a task or group of lmms-eval{said}; "
                    "`python -m lmms_eval --tasks list` has all"
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
    own = Path(find_spec("lmms_eval").origin).parent / "tasks"
    # Most tasks lie in a folder whose name theirs begins with: for them the rest is not read.
    likely = [f for f in own.iterdir() if any(name.startswith(f.name) for name in names)]
    for folder in (*likely, own):
        if folder == own and names <= registry.files.keys():
            break
        for path in folder.rglob("*.yaml"):
            if folder != own or path.relative_to(own).parts[0] not in {f.name for f in likely}:
                _add(registry, path)
    if names <= registry.files.keys() | registry.groups.keys():
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


def _add(registry: Registry, path: Path) -> None:
    found = _values(path.read_text(encoding="utf-8-sig", errors="replace").splitlines())
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
