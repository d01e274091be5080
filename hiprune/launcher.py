"""The launcher: any module that loads its model with the `llava` package, run with HiPrune applied.

    HIPRUNE_RETENTION=64 python -m hiprune -m llava.eval.model_vqa_loader --model-path ...

Modification, for the length of the run: ``llava.model.builder.load_pretrained_model`` applies
HiPrune to every model that it returns. Nothing is changed on disk.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.patching import apply

USAGE = """\
usage: hiprune -m MODULE [ARGUMENT ...]      (or: python -m hiprune -m MODULE [ARGUMENT ...])

Runs MODULE as `python -m MODULE ARGUMENT ...` does, with HiPrune applied to every model that
llava.model.builder.load_pretrained_model returns to it.

  HIPRUNE_RETENTION     visual tokens kept per image: 1-576 for LLaVA-1.5 (default 192),
                        1-2880 for LLaVA-NeXT (default 640)
  HIPRUNE_ALPHA         share of them for anchors and buffers: 0-1 (default 0.1)
  HIPRUNE_OBJECT_LAYER  encoder layer that anchors are read from, counted from 1 (default 9)

exit status: 2 for wrong usage or a bad variable, 1 for a model that HiPrune does not take or a
module that loaded none; otherwise MODULE's.
"""
FAMILIES = ("llava", "llava_next")  # of the models that llava's loader returns
BUILDER, LOADER = "llava.model.builder", "load_pretrained_model"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the launcher; returns the exit status, and lets MODULE's own SystemExit through."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if len(arguments) < 2 or arguments[0] != "-m":
        print(USAGE, end="", file=sys.stderr)
        return _fail(2, f"arguments {arguments}: expected -m MODULE [ARGUMENT ...]")
    try:
        check_environment()
        run(arguments[1], arguments[2:])
    except HiPruneError as error:
        # Messages of HiPruneConfig.from_env begin with the variable's name. The bounds of
        # HIPRUNE_RETENTION are the family's, which is known only when the model is loaded.
        return _fail(2 if str(error).startswith("HIPRUNE_") else 1, error)
    except _NoSuchModule as error:
        return _fail(2, error)
    return 0


def check_environment(environ: Mapping[str, str] | None = None) -> None:
    """Raise a HiPruneError for HIPRUNE_* variables that no family of llava's models accepts."""
    messages = {}
    for family in FAMILIES:
        try:
            HiPruneConfig.from_env(family, environ)
        except HiPruneError as error:
            messages[family] = str(error)
    if len(messages) < len(FAMILIES):
        return
    if len(set(messages.values())) == 1:
        raise HiPruneError(messages[FAMILIES[0]])
    raise HiPruneError("; ".join(f"{text} for {family}" for family, text in messages.items()))


def run(module: str, arguments: Sequence[str]) -> None:
    """Run ``module`` as a script with HiPrune on; the process is as before when it has ended.

    Raises:
        HiPruneError: `llava` is missing, a model or a setting that HiPrune does not take, or a
            module that ended without a model from llava's loader: then nothing was pruned.
    """
    _find(module)
    idle = (
        f"{module}: ended without a model from {BUILDER}.{LOADER}, so nothing was pruned; "
        "expected a module that loads its model with that function"
    )
    argv = sys.argv
    sys.argv = [module, *arguments]
    try:
        with _pruned_loader() as models:
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as stop:
                # `MODULE --help` ends so, rightly; its status stands, but not silently.
                if not stop.code and not models:
                    print(f"hiprune: {idle}", file=sys.stderr)
                raise
    finally:
        sys.argv = argv
    if not models:
        raise HiPruneError(idle)


@contextmanager
def _pruned_loader() -> Iterator[list[str]]:
    """Wrap llava's loader; yields the class names of the models pruned, growing as they load."""
    try:
        builder = importlib.import_module(BUILDER)
    except ImportError as error:
        raise HiPruneError(
            f"{BUILDER}: {error}; expected an environment with the llava package and what it "
            "needs (setup_llava.sh makes one)"
        ) from error
    original: Callable[..., Any] = getattr(builder, LOADER)
    models: list[str] = []

    @functools.wraps(original)
    def load(*args, **kwargs):
        loaded = original(*args, **kwargs)  # tokenizer, model, image processor, context length
        handle = apply(loaded[1])
        models.append(type(loaded[1]).__name__)
        config = handle.config
        print(
            f"hiprune: {models[-1]} ({handle.family}) keeps N'={config.retention} visual tokens "
            f"per image (alpha={config.alpha}, object layer {config.object_layer})",
            file=sys.stderr,
        )
        return loaded

    setattr(builder, LOADER, load)
    try:
        yield models
    finally:
        setattr(builder, LOADER, original)


class _NoSuchModule(Exception):
    pass


def _find(module: str) -> None:
    """Tell a module that does not exist from one that fails to import something."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        found = False
    except (ImportError, ValueError):  # a relative or an empty name
        found = False
    if not found:
        raise _NoSuchModule(f"MODULE={module!r}: no such module; expected one that Python finds")


def _fail(status: int, message: object) -> int:
    print(f"hiprune: {message}", file=sys.stderr)
    return status
