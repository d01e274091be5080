"""Which lines read a tensor's values on the host: on a GPU each of them waits for the device."""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__",
           "__index__")  # fmt: skip
# Operators whose result's shape, or result, depends on values.
OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim",
             "unique_consecutive", "is_nonzero", "equal"}  # fmt: skip


class HostReads(TorchDispatchMode):
    """Reads between :meth:`begin` and :meth:`end`, the places of this repository's own in `ours`.

    Use it as ``with HostReads(first, last) as reads``: the span goes from the first call of the
    module ``first`` to that of ``last``.
    """

    def __init__(self, first: torch.nn.Module, last: torch.nn.Module) -> None:
        super().__init__()
        self.count, self.ours, self.spans = 0, [], 0
        self._on = False
        self._modules = (first, last)
        self._stack = ExitStack()

    def __enter__(self):
        first, last = self._modules
        hooks = [
            first.register_forward_pre_hook(lambda *_: self._switch(True)),
            last.register_forward_pre_hook(lambda *_: self._switch(False)),
        ]
        for hook in hooks:
            self._stack.callback(hook.remove)
        for name in METHODS:
            wrapped = self._wrap(name, getattr(torch.Tensor, name))
            self._stack.enter_context(patch.object(torch.Tensor, name, wrapped))
        return super().__enter__()

    def __exit__(self, *error):
        self._stack.close()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("index", "index_put", "index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            if masks:
                self._note(f"{name} by a mask")
        elif name in OPERATORS:
            self._note(name)
        return func(*args, **(kwargs or {}))

    def _switch(self, on: bool) -> None:
        self.spans += on and not self._on
        self._on = on

    def _wrap(self, name, original):
        def read(*args, **kwargs):
            self._note(name)
            return original(*args, **kwargs)

        return read

    def _note(self, what: str) -> None:
        if not self._on:
            return
        self.count += 1
        own = [ROOT / "hiprune", ROOT / "models"]
        for frame in reversed(traceback.extract_stack()):
            path = Path(frame.filename)
            if path == Path(__file__) or "/torch/" in frame.filename:
                continue
            if any(folder in path.resolve().parents for folder in own):
                self.ours.append(f"{path.name}:{frame.lineno} {what}")
            return
