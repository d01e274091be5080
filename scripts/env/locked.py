"""What the locks hold, and whether this environment holds just that.

    python scripts/env/locked.py qwen    exit status 0: nothing of the lock is missing here
    python scripts/env/locked.py cuda    exit status 0: torch is a build that needs cuda.lock too

Standard library and pip alone: it runs before anything is installed.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

try:
    from packaging.markers import Marker
except ImportError:  # in a new environment
    from pip._vendor.packaging.markers import Marker

FOLDER = Path(__file__).resolve().parent
NAMES = ("llava", "qwen", "vllm", "vllm_cuda")
# What a virtual environment comes with, and what is under test.
ASIDE = {"pip", "setuptools", "wheel", "hiprune"}
_ENTRY = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[^\s;]+)\s*(?:;\s*(?P<marker>[^\\]*))?")


@dataclass(frozen=True)
class Entry:
    """A line of a lock: a distribution and its version; and, empty where it always does, when."""

    name: str
    version: str
    marker: str
    hashes: int

    @property
    def holds_here(self) -> bool:
        return not self.marker or Marker(self.marker).evaluate()


def read_lock(path: Path) -> list[Entry]:
    """The entries of a lock; none where there is no file.

    Raises:
        ValueError: a line that pins nothing.
    """
    if not path.is_file():
        return []
    entries = []
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    for line in (line.partition("#")[0].strip() for line in text.splitlines()):
        if not line:
            continue
        pin, *hashes = line.split(" --hash=")
        found = _ENTRY.fullmatch(pin.strip())
        if found is None:
            raise ValueError(f"{path.name}: {pin!r} pins no version")
        marker = (found["marker"] or "").strip()
        entries.append(Entry(normal(found["name"]), found["version"], marker, len(hashes)))
    return entries


def normal(name: str) -> str:
    """A distribution's name as the index spells it: "lmms-eval" for lmms_eval."""
    return re.sub(r"[-_.]+", "-", name).lower()


def differences(name: str, others: dict[str, str] | None = None) -> tuple[list[str], list[str]]:
    """How this environment differs from a lock, a line each.

    Args:
        name: of the lock, out of :data:`NAMES`.
        others: distributions whose version the set-up was told, which then stands for the lock's.

    Returns:
        What is missing or of another version; and what is there besides (a user's flash-attn, say).
    """
    locks = [name, "cuda"] if needs_cuda() else [name]
    entries = [entry for lock in locks for entry in read_lock(FOLDER / f"{lock}.lock")]
    wanted = {entry.name: entry.version for entry in entries if entry.holds_here}
    wanted |= others or {}
    installed = read_installed()
    wrong, besides = [], []
    for package in sorted((wanted.keys() | installed.keys()) - ASIDE):
        here = installed.get(package)
        expected = wanted.get(package)
        if expected is None:
            besides.append(f"{package} {here}: expected none")
        elif here != expected:
            wrong.append(f"{package} {here or 'missing'}: expected {expected}")
    return wrong, besides


def read_installed() -> dict[str, str]:
    """Distribution -> its version, of what can be imported; without a build's "+cpu".

    From their folders' names: to read what is in hundreds of them takes a second.
    """
    installed: dict[str, str] = {}
    for folder in map(Path, sys.path):
        for found in folder.glob("*-*.dist-info"):
            name, _, version = found.name.removesuffix(".dist-info").partition("-")
            if (found / "METADATA").is_file():
                installed.setdefault(normal(name), version.partition("+")[0])
        for found in map(metadata.Distribution.at, folder.glob("*.egg-info")):
            if found.metadata["Name"]:
                installed.setdefault(normal(found.metadata["Name"]), found.version)
    return installed


def needs_cuda() -> bool:
    """Is the torch that is installed here a build that names CUDA packages?"""
    try:
        needed = metadata.requires("torch") or []
    except metadata.PackageNotFoundError:
        return False
    for requirement in needed:
        name, _, marker = requirement.partition(";")
        if name.startswith(("nvidia-", "cuda-")) and (not marker or Marker(marker).evaluate()):
            return True
    return False


def chosen(prefix: str = sys.prefix) -> dict[str, str]:
    """The versions that the set-up of an environment was told, in place of the lock's."""
    mark = Path(prefix) / "hiprune-setup-complete"
    lines = mark.read_text(encoding="utf-8").splitlines()[1:] if mark.is_file() else []
    return dict(line.split("==") for line in lines if line)


def main() -> int:
    name, *pairs = sys.argv[1:] or [""]
    if name == "cuda":
        return 0 if needs_cuda() else 1
    if name not in NAMES:
        print(f"usage: locked.py {' | '.join(NAMES)} [NAME==VERSION ...] | cuda", file=sys.stderr)
        return 2
    wrong, _ = differences(name, dict(pair.split("==") for pair in pairs))
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
