"""Resolve the lists of what is wanted (*.in) to complete locks (*.lock), and tell what changed.

    bash scripts/lock.sh            runs it, in an environment that has uv

``llava.lock``, ``qwen.lock``, ``vllm.lock`` and ``vllm_cuda.lock`` (of GPUs, installed by hand:
docs/serving.md) hold every distribution of an environment, with hashes. torch alone has none: what
is installed may be a build of the same version that lies on the machine. The CUDA packages that
torch's build for CUDA needs besides are no part of them, so that a CPU machine downloads none: they
are ``cuda.lock``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.markers import Marker

from scripts.env.locked import FOLDER, Entry, read_lock

# Lock -> the Pythons that its environment takes.
PYTHONS = {"llava": ("3.10", "3.11", "3.12"), "qwen": ("3.11", "3.12")}
PYTHONS |= {"vllm": PYTHONS["qwen"], "vllm_cuda": PYTHONS["qwen"]}
PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
HEAD = "# Made by scripts/lock.sh of {}; not edited by hand.\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bash scripts/lock.sh", add_help=False)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--into", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    arguments.into.mkdir(parents=True, exist_ok=True)
    made = {}
    for name, pythons in PYTHONS.items():
        print(f"lock: resolving {name}.in", flush=True)
        text = _resolve(f"{name}.in", pythons[0], f"{name}.lock" if arguments.keep else None)
        made[f"{name}.lock"] = HEAD.format(f"common.in and {name}.in") + _tidy(text, pythons)
    print("lock: resolving cuda.in", flush=True)
    made["cuda.lock"] = HEAD.format("cuda.in") + _cuda()
    for name, text in made.items():
        before = read_lock(FOLDER / name)  # of the kept one, wherever the new one goes
        (arguments.into / name).write_text(text, encoding="utf-8")
        changes = _changes(before, read_lock(arguments.into / name))
        print(f"{name}: {', '.join(changes) or 'nothing changed'}")
    return 0


def _resolve(wanted: str, python: str, start: str | None) -> str:
    """uv's answer for one list; with the versions of the lock ``start`` wherever they will do."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lock.txt"
        if start and (FOLDER / start).is_file():
            shutil.copy(FOLDER / start, output)
        _uv(wanted, "--python-version", python, "--generate-hashes", "-o", output)
        return output.read_text(encoding="utf-8")


def _cuda() -> str:
    """The packages that only a torch for CUDA needs."""
    # By torch's own metadata, which the environments' settings of uv replace.
    options = ("--generate-hashes", "--fork-strategy", "fewest", "--no-config")
    text = _uv("cuda.in", "--python-version", "3.10", *options)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    cuda = [line for line in lines if line.startswith(("nvidia-", "cuda-"))]
    return _tidy("\n".join(cuda), PYTHONS["llava"])


def _uv(wanted: str, *options: object) -> str:
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "--universal",
        "--quiet",
        "--no-header",
    ]
    command += ["--no-annotate", "--no-emit-index-url", wanted, *map(str, options)]
    done = subprocess.run(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"lock: {wanted} cannot be resolved; uv says why above")
    return done.stdout


def _tidy(text: str, pythons: tuple[str, ...]) -> str:
    """Without what no environment takes, and without markers that hold in all of them."""
    environments = [
        {
            "python_version": python,
            "python_full_version": f"{python}.9",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "sys_platform": system,
            "platform_system": system.title(),
            "platform_machine": machine,
        }
        for python in pythons
        for system, machine in PLATFORMS
    ]
    kept = []
    for requirement in re.sub(r"\\\n\s*", "", text).splitlines():
        pin, _, hashes = requirement.partition(" --hash")
        pin, _, marker = (part.strip() for part in pin.partition(";"))
        hashes = re.findall(r"sha256:\w+", hashes)
        if not pin:
            continue
        holds = [not marker or Marker(marker).evaluate(found) for found in environments]
        if not any(holds):
            continue
        if not all(holds):
            pin += f" ; {_shortest(marker, holds, environments)}"
        if pin.startswith("torch=="):
            hashes = []
        kept.append(" \\\n    ".join([pin, *(f"--hash={found}" for found in hashes)]))
    return "\n".join(kept) + "\n"


def _shortest(marker: str, holds: list[bool], environments: list[dict]) -> str:
    """A plain marker that says the same in all environments, where there is one."""
    values = {
        name: sorted({found[name] for found in environments})
        for name in ("sys_platform", "platform_machine", "python_version")
    }
    plain = [f"{name} == '{value}'" for name in values for value in values[name]]
    plain += [f"python_version < '{value}'" for value in values["python_version"]]
    plain += [f"python_version >= '{value}'" for value in values["python_version"]]
    plain += [f"sys_platform == '{s}' and platform_machine == '{m}'" for s, m in PLATFORMS]
    for candidate in plain:
        if [Marker(candidate).evaluate(found) for found in environments] == holds:
            return candidate
    return marker


def _changes(before: list[Entry], after: list[Entry]) -> list[str]:
    """name old -> new, of whatever differs."""
    old, new = ({} for _ in range(2))
    for versions, entries in ((old, before), (new, after)):
        for entry in entries:
            versions.setdefault(entry.name, set()).add(entry.version)
    return [
        f"{name} {' / '.join(sorted(old.get(name, {'-'})))}"
        f" -> {' / '.join(sorted(new.get(name, {'-'})))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


if __name__ == "__main__":
    sys.exit(main())
