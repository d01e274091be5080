"""What flops.py at the root runs."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Nothing is loaded: what transformers has to say about models without weights is no news.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
PACKAGES = ("torch", "transformers", "fvcore", "hiprune")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or JSON, of what the arguments ask for; the exit status."""
    try:
        status = _count(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # a reader that stops early, as ``head`` does
        # What could not be written is tried once more at exit: there it shall find an open file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    return status


def _count(arguments: Sequence[str] | None) -> int:
    try:
        versions = {name: version(name) for name in PACKAGES}
    except PackageNotFoundError as error:
        return _refuse(
            f"{error.name} is not installed; expected an environment of setup_llava.sh (LLaVA) "
            "or setup_qwen.sh (all models)"
        )
    from scripts.efficiency.flops.cli import read_settings
    from scripts.efficiency.flops.models import counts_of
    from scripts.efficiency.flops.tables import introduction, record, rows_of, table

    arguments = sys.argv[1:] if arguments is None else list(arguments)
    settings = read_settings(arguments)
    for name, reason in settings.left_out.items():
        print(f"flops.py: {name} is left out: {reason}", file=sys.stderr)
    versions = {"Python": platform.python_version(), **versions}
    quiet = settings.json == "-"
    if not quiet:
        print(introduction(settings, versions), flush=True)
    models = {}
    for subject in settings.subjects:
        counts = counts_of(subject.architecture, subject.picture)
        tables = {
            name: rows_of(subject, counts, name, settings.text_tokens, settings.passes)
            for name in settings.conventions
        }
        models[subject.architecture.name] = record(subject, tables)
        if not quiet:
            for name, rows in tables.items():
                print(f"\n{table(subject, name, rows)}", flush=True)
    if settings.json is not None:
        text = {
            "command": shlex.join(["python", "flops.py", *arguments]),
            "versions": versions,
            "text_tokens": settings.text_tokens,
            "scoring_passes": settings.passes,
            "left_out": settings.left_out,
            "models": models,
        }
        return _write(settings.json, json.dumps(text, indent=1))
    return 0


def _write(place: str, text: str) -> int:
    if place == "-":
        print(text)
        return 0
    try:
        Path(place).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        return _refuse(f"--json={place!r}: {error.strerror}; expected a file to write, or -")
    print(f"\nfigures in full: {place}")
    return 0


def _refuse(reason: str) -> int:
    print(f"flops.py: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
