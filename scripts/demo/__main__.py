"""A page to play with: a picture, a question, settings -> kept tokens, maps, both answers.

    bash scripts/demo.sh --tiny
    CKPT=llava-hf/llava-1.5-7b-hf bash scripts/demo.sh

What it shows and which variables it reads: docs/demo.md.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from hiprune import HiPruneError

PORT = 7860
SMALL = ("tiny", "tiny-llava", "tiny-llava-next", "tiny-qwen")  # as hiprune.show names them


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Serve until Ctrl-C; what is wrong is told in a line."""
    try:
        # Gradio reads these when it is imported: nothing is told to anybody, and what users
        # upload is gone with the page.
        with tempfile.TemporaryDirectory(prefix="hiprune-demo-") as folder:
            os.environ.update(
                GRADIO_ANALYTICS_ENABLED="False",
                HF_HUB_DISABLE_TELEMETRY="1",
                GRADIO_TEMP_DIR=str(Path(folder)),
            )
            serve(arguments, environ)
    except HiPruneError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


def serve(arguments: list[str], environ: Mapping[str, str]) -> None:
    name, port = checkpoint_name(arguments, environ), port_of(environ)
    if name in SMALL:
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    print(f"demo: loading {name}", flush=True)
    import torch

    from hiprune.show.checkpoints import find_checkpoint

    try:
        checkpoint = find_checkpoint(name)
        device = environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
        from scripts.demo.loaded import Loaded

        loaded = Loaded(checkpoint, device, environ, environ.get("TEXT") or None)
    except HiPruneError as error:
        raise HiPruneError(str(error).replace("--model ", "CKPT=", 1)) from error
    try:
        from scripts.demo import layout
    except ImportError as error:
        if error.name != "gradio":
            raise
        raise HiPruneError("gradio: not installed; expected pip install '.[demo]'") from error

    blocks = layout.build(loaded)
    address = layout.launch(blocks, port)
    print(f"demo: {address} shows {name} (Ctrl-C ends it)", flush=True)
    try:
        _until_it_ends()
    finally:
        blocks.close(verbose=False)


def _until_it_ends() -> None:
    """Ctrl-C and SIGTERM are a KeyboardInterrupt here."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background has the first ignored
        signal.signal(number, signal.default_int_handler)
    threading.Event().wait()


def checkpoint_name(arguments: list[str], environ: Mapping[str, str]) -> str:
    """--tiny, or CKPT."""
    name = environ.get("CKPT", "")
    for argument in arguments:
        if argument != "--tiny":
            raise HiPruneError(f"unknown argument {argument!r}; expected --tiny or nothing")
    if arguments and name not in ("", *SMALL):
        raise HiPruneError(f"CKPT={name!r} beside --tiny: expected one of the two")
    if not name and not arguments:
        raise HiPruneError("CKPT='': expected a checkpoint, or --tiny")
    return name or "tiny"


def port_of(environ: Mapping[str, str]) -> int:
    text = environ.get("PORT") or str(PORT)
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise HiPruneError(f"PORT={text!r}: expected a number from 1 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
