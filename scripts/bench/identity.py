"""What decides a score beside task, LIMIT and budget: runs that differ in it never mix."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from scripts.bench.settings import Settings
from scripts.env import locked

SEED = "0,1234,1234,1234"  # of random, numpy, torch and few-shot examples: lmms-eval's own default
STATED = "settings.json"  # in the folder of the runs
# What a checkpoint computes with, and what a task is made of.
READ = {".json", ".safetensors", ".bin", ".pt", ".pth", ".model", ".txt", ".jinja", ".py"}
READ |= {".jsonl", ".yaml", ".png", ".jpg"}
UNKNOWN = "unknown"
WHOLE_BYTES, PIECES, PIECE_BYTES = 2**24, 64, 2**16


def with_identity(settings: Settings) -> Settings:
    """The settings with their identity, which names the folder of their runs, and stated in it."""
    settings = replace(settings, identity=identity(settings))
    settings.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(settings.identity, indent=1)
    (settings.folder / STATED).write_text(text + "\n", encoding="utf-8")
    return settings


def identity(settings: Settings) -> dict[str, object]:
    """Name -> value of all that decides a score, as JSON holds them."""
    lock = "llava" if settings.benchmark.model == "llava_hiprune" else "qwen"
    lock = "vllm" if settings.engine else lock
    found: dict[str, object] = {
        "model": settings.benchmark.model,
        **({"engine": settings.engine} if settings.engine else {}),
        "revision": revision(settings.checkpoint),
        **{name: value for name, value in settings.model_args.items() if name != "pretrained"},
        "device": device(),
        "seed": SEED,
        "lock": lock_state(lock),
        "hiprune": version("hiprune"),
    }
    if settings.asks_tiny:
        task = settings.benchmark.tiny.task_folder
        found["task"] = files_hash(task.rglob("*"), task)
    return found


def differences(settings: Settings) -> list[str]:
    """Folders of the same checkpoint's runs with other settings, a line each: what differs."""
    found = []
    for folder in sorted(settings.folder.parent.glob(f"{settings.name}*")):
        rest = folder.name.removeprefix(settings.name)
        if folder == settings.folder or not re.fullmatch(r"(_[0-9a-f]{8})?", rest):
            continue
        try:
            stated = json.loads((folder / STATED).read_text(encoding="utf-8"))
            names = sorted(settings.identity.keys() | stated.keys())
            pairs = [(name, stated.get(name), settings.identity.get(name)) for name in names]
            what = "; ".join(
                f"{name} {was!r}, now {is_!r}" for name, was, is_ in pairs if was != is_
            )
        except (OSError, ValueError, AttributeError):
            what = "not stated" if any(folder.iterdir()) else ""
        if what:
            found.append(f"{folder}: {what}")
    return found


def device() -> str:
    """ "cpu", or the GPU's name."""
    if not torch.cuda.is_available():
        return "cpu"
    # In a process of its own: this one lives as long as the evaluations and holds no GPU memory.
    ask = "import torch; print(torch.cuda.get_device_name(0))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    return done.stdout.strip() or "cuda"


def lock_state(name: str) -> str:
    """A lock by its hash, and how this environment differs from it."""
    text = "".join(
        (locked.FOLDER / f"{one}.lock").read_text(encoding="utf-8")
        for one in ([name, "cuda"] if locked.needs_cuda() else [name])
    )
    wrong, besides = locked.differences(name)  # a version that the set-up was told is one
    lines = [line.partition(": expected")[0] for line in (*wrong, *besides)]
    state = f"{name}.lock {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return f"{state} but {', '.join(lines)}" if lines else state


def revision(checkpoint: str) -> str:
    """The commit of a checkpoint on the hub, or a hash of what a folder holds."""
    folder = Path(checkpoint)
    if folder.is_dir():
        return files_hash(folder.iterdir(), folder)
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        return HfApi().model_info(checkpoint, timeout=10).sha or UNKNOWN
    except HFValidationError:  # a folder that is not there: the run will tell
        return UNKNOWN
    except Exception:  # whatever it is that the hub's client raises: then the cached one runs
        cached = try_to_load_from_cache(checkpoint, "config.json")
        return Path(cached).parent.name if isinstance(cached, str) else UNKNOWN


def files_hash(files: Iterable[Path], root: Path) -> str:
    """Of names and contents, wherever ``root`` lies; of a large file, evenly spread pieces.

    Weights that were trained further differ everywhere, and all of many gigabytes would take
    minutes to read.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.suffix in READ):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root)} {size}\n".encode())
        with open(path, "rb") as file:
            if size <= WHOLE_BYTES:
                digest.update(file.read().replace(str(root).encode(), b""))
                continue
            for piece in range(PIECES):
                file.seek((size - PIECE_BYTES) * piece // (PIECES - 1))
                digest.update(file.read(PIECE_BYTES))
    return f"files {digest.hexdigest()[:12]}"
