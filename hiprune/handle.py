"""PruneHandle: what an applied patch changed on one model instance, and the way back.

A patched module is an object of a subclass of its class (:func:`patched_class`), whose methods find
what they need on the module itself. So a deep copy or a pickle of a patched model is a patched
model of its own, a wrapper that somebody puts over a patched method stays right when the patch goes
(the method then passes straight through), and nothing here keeps a model alive.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.selection import TokenSelection

# In the __dict__ of a patched module: what its methods work with; of the model, its handle.
STATE = "_hiprune"
# And what stood on the instance in place of a method: method -> (attribute, value).
_BEFORE = "_hiprune_before"
# Methods that are running what stood on the instance before, which may call ours once more.
_ENTERED: ContextVar[frozenset] = ContextVar("hiprune_entered", default=frozenset())


class Part:
    """What a kind of module does while HiPrune is applied.

    Each function ``name(module, original, *args, **kwargs)`` of a subclass stands in for the
    module's method of that name; ``original`` is that method, bound to the module.
    """


class PruneHandle:
    """A model with HiPrune applied; :meth:`remove` gives the model back as it was.

    Attributes:
        config: the configuration, with the family's defaults filled in.
        family: a name in :data:`hiprune.config.FAMILIES`, such as "llava" or "qwen2_5_vl".
        adapter: what knows the family's models (:mod:`hiprune.models.base`).
    """

    def __init__(self, model: Any, config: HiPruneConfig, family: str, adapter: Any) -> None:
        if STATE in vars(model):
            raise HiPruneError(
                f"model: this {type(model).__name__} already has HiPrune applied; expected an "
                "unpatched model (call remove() on the handle first)"
            )
        self.config = config
        self.family = family
        self.adapter = adapter
        self.tower: Any = None  # the adapter's
        self._model = weakref.ref(model)
        self._local = threading.local()
        self._changes: list[tuple[weakref.ref, Any]] = []

    @property
    def selections(self) -> list[TokenSelection]:
        """One TokenSelection per image of this thread's last forward that saw images.

        In the order of the images. Its B rows are the image's views: one, or several for
        LLaVA-NeXT; of a video its frames.
        """
        return getattr(self._local, "selections", None) or []

    @selections.setter
    def selections(self, found: list[TokenSelection]) -> None:
        self._local.selections = found

    def encode_images(self, pixels: Any, sizes: Any = None, text: Any = None) -> list[Tensor]:
        """Pixels -> the kept tokens of each image, (N', C), as the language model gets them.

        Runs the vision tower, the selection (``selections`` tell it) and the projector, no prompt.

        Args:
            pixels: as the model's processor gives them.
            sizes: what comes with them: `image_sizes` of LLaVA-NeXT and LLaVA-OneVision (there
                alone in its prompt each, or a tuple with `batch_num_images`), `image_grid_thw` of
                Qwen's; of InternVL how many tiles each image has, None: all are of one.
            text: for a method that reads the prompt's words: (M, E) embeddings of them, for all
                images or a list of one each; with a text encoder also the words themselves.

        Raises:
            HiPruneError: the handle was removed, or what the model's forward raises.
        """
        model = self._model()
        if not self._changes or model is None:
            raise HiPruneError("encode_images: HiPrune was removed from this model")
        with torch.no_grad():
            return self.adapter.encode_images(model, self, pixels, sizes, text)

    # What an adapter does to a model, each with its way back.

    def patch(self, module: nn.Module, part: type[Part], state: Any, anew: bool = False) -> None:
        """Have a module do as ``part`` says, with ``state``, until remove().

        ``anew``: its class is made for this one time, so that what Dynamo has compiled before is
        compiled anew: it looks at a module's class, but not for hooks that were put on later.

        The module's other attributes, hooks and weights stay, and so does what stands on the
        instance in place of a method: it runs where the class's method would have, beneath ours.
        A wrapper of accelerate's hooks stays above.
        """
        if vars(module).get(STATE, self) is not self:
            raise HiPruneError(
                f"model: its {type(module).__name__} already has HiPrune applied; expected an "
                "unpatched model"
            )
        make = patched_class.__wrapped__ if anew else patched_class
        made, before = make(type(module), part), {}
        self._changes.append((weakref.ref(module), _Methods()))
        object.__setattr__(module, "__class__", made)  # nn.Module's would look at the value
        vars(module)[STATE] = state
        for name in made._hiprune_names:
            for attribute in _places(module, name):
                if attribute in vars(module):
                    before[name] = (attribute, vars(module)[attribute])
                    vars(module)[_BEFORE] = before
                    vars(module)[attribute] = MethodType(vars(made)[name], module)
                    break

    def placed(self, hooks: Iterable[tuple[nn.Module, Any]]) -> None:
        """Have remove() take hooks off again: (module, an object of which ``detach`` does it).

        Each comes before it is put on, so that one that fails half-way is taken off as well.
        """
        for module, hook in hooks:
            if STATE not in vars(module):
                self.patch(module, Part, self, anew=True)
            self._changes.append((weakref.ref(module), _Hook(hook)))

    def remove(self) -> None:
        """Restore the model; a second call does nothing.

        What is still ours is taken back. What somebody put over it stays, and finds the model
        unpatched below.
        """
        while self._changes:
            owner, change = self._changes.pop()
            if (owner := owner()) is not None:
                change.undo(owner)

    # Of a copy, or of another process: the same changes on the copy's own modules.

    def __getstate__(self) -> dict[str, Any]:
        found = {name: value for name, value in vars(self).items() if name != "_local"}
        found["_model"] = self._model()
        found["_changes"] = [
            (owner(), change) for owner, change in self._changes if owner() is not None
        ]
        return found

    def __setstate__(self, found: dict[str, Any]) -> None:
        vars(self).update(found)
        self._local = threading.local()
        model = self._model
        self._model = (lambda: None) if model is None else weakref.ref(model)
        self._changes = [(weakref.ref(owner), change) for owner, change in self._changes]


@functools.cache
def patched_class(base: type, part: type[Part]) -> type:
    """The subclass of a module's class that does as ``part`` says where there is a state."""
    functions = {name: value for name, value in vars(part).items() if inspect.isfunction(value)}
    for name in functions:
        if not callable(getattr(base, name, None)):
            raise HiPruneError(
                f"model: {base.__name__} has no {name}; expected one of a release that this "
                "adapter knows"
            )

    def __reduce_ex__(self: Any, protocol: int) -> tuple:
        _, args, *rest = base.__reduce_ex__(self, protocol)
        if args[:1] != (type(self),):
            raise HiPruneError(
                f"model: this {base.__name__} cannot be pickled while HiPrune is applied; expected "
                "is that its handle's remove() comes first"
            )
        return (_new, (base, part), *rest)

    body = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": __reduce_ex__,
        "_hiprune_base": base,
        "_hiprune_names": tuple(functions),
        **{name: _method(base, name, function) for name, function in functions.items()},
    }
    return type(base)(base.__name__, (base,), body)


def _new(base: type, part: type[Part]) -> Any:
    made = patched_class(base, part)
    return made.__new__(made)


def _method(base: type, name: str, function: Callable) -> Callable:
    own = getattr(base, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args and args[0] is self:
            args = args[1:]  # accelerate's unwrap_model binds what is bound already once more
        if STATE not in vars(self):  # removed, and called by what somebody put over it
            return own(self, *args, **kwargs)
        before = vars(self).get(_BEFORE, {}).get(name)
        if before is None:
            return function(self, functools.partial(own, self), *args, **kwargs)
        entered, this = _ENTERED.get(), (id(self), name)
        if this in entered:
            return own(self, *args, **kwargs)
        token = _ENTERED.set(entered | {this})
        try:
            return function(self, before[1], *args, **kwargs)
        finally:
            _ENTERED.reset(token)

    # No __wrapped__, which would lead past us: accelerate's unwrap_model takes the last one.
    method.__name__, method.__qualname__ = name, f"{base.__qualname__}.{name}"
    method.__doc__, method.__module__ = own.__doc__, own.__module__
    method.__signature__ = inspect.signature(own)
    return method


def _places(module: Any, name: str) -> tuple[str, ...]:
    """Attributes of an instance that stand for its method, the innermost first."""
    hooked = name == "forward" and "_hf_hook" in vars(module)
    return ("_old_forward", name) if hooked else (name,)


def overridden(module: Any) -> bool:
    """Does anybody's forward but its class's stand on the instance, over ours or beneath it?

    accelerate's hooks leave the class's own there when they go.
    """
    attributes = vars(module)
    standing = attributes.get("_old_forward" if "_hf_hook" in attributes else "forward")
    if standing is None:
        return False
    found = [standing, *(before for _, before in attributes.get(_BEFORE, {}).values())]
    own = [vars(cls).get("forward") for cls in type(module).__mro__]
    return any(getattr(each, "__func__", each) not in own for each in found)


class _Methods:
    """A module of a patched class."""

    def undo(self, owner: Any) -> None:
        attributes, made = vars(owner), type(owner)
        attributes.pop(STATE, None)
        before = attributes.pop(_BEFORE, {})
        ours = next((c for c in made.__mro__ if "_hiprune_base" in vars(c)), None)
        if ours is None:
            return
        base = ours._hiprune_base
        methods = {vars(ours)[name]: name for name in ours._hiprune_names}
        # Ours may have moved on: accelerate keeps a method elsewhere while its hook is there.
        for attribute, value in list(attributes.items()):
            name = methods.get(getattr(value, "__func__", None))
            if name is None or value.__self__ is not owner:
                continue
            if name in before:
                attributes[attribute] = before[name][1]
            elif attribute == name:
                del attributes[attribute]
            else:
                attributes[attribute] = MethodType(getattr(base, name), owner)
        if made is ours:  # else somebody's class over it goes on, ours passing straight through
            object.__setattr__(owner, "__class__", base)


class _Hook:
    """A hook on a module, and those that came with it."""

    def __init__(self, hook: Any) -> None:
        self.hook = hook

    def undo(self, owner: Any) -> None:
        self.hook.detach(owner)
