"""A model family as the tests see it, and what tests of all families compare with."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from hiprune import HiPruneConfig, HiPruneError

PACKAGE = find_spec("llava") is not None  # the `llava` package has an environment of its own
DTYPE = torch.float32 if PACKAGE else torch.float64  # transformers 4.37's masks know no float64
STEPS = 4
BY_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "labels")  # (B, T) each


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: as in a handle's ``family``, and where it comes from.
        make: a tiny model with random weights, the same every time.
        prompts: (model, images of each prompt, number of the first) -> left-padded arguments of
            forward and generate.
        full, third: budgets that keep everything, and a third.
        most: the tokens of the largest image that the model can have; None: of any size.
        object_layer: l that the oracle is made with.
        by_hand: (model, arguments of one prompt without padding, budget, steps, pick) -> logits
            (T', V) and answer of the prompt pruned by hand; ``pick`` as of the decoders by hand.
        cut: (arguments, first, past the last) -> the arguments that bring these images.
        pixels: name of the argument with the pixels.
        placeholder: id of the token that stands for an image.
        tower, layers, projector: model -> the vision tower, its layers, what comes after it.
        attention: name of the attention in a layer.
        scored: names of the attention's layers that make queries and keys.
        rest: names of other linear layers of the tower's.
        graded: (model, arguments of one prompt) -> logits (T', V) as of ``by_hand`` at a third,
            that a backward pass goes through; None where no test asks.
        clip: is it a LLaVA's CLIP tower?
        looked: (model, arguments) -> by hand, of each image (its views, its columns c, all that a
            method can need but the text, (V, ...) each); None: only methods that need attention
            alone run on it.
        plain: (model, arguments) -> those that keep everything without HiPrune; as they are, but
            for LLaVA-NeXT, whose kept tokens come without newlines (the paper's merge type).
        output: the tower's output layer, an index into its layers.
        mrope: do kept tokens keep the positions of the unpruned prompt?
        depth: the default l and the layers that it is of.
        variable: of the environment, with the budget.
        newlines: has the unpatched model's prompt tokens that are no views' (newlines)?
        blanks: are prompts without an image among others given a blank one?
    """

    name: str
    make: Callable[[], Any]
    prompts: Callable[[Any, Sequence[int], int], dict]
    full: int | float
    third: int | float
    most: int | None
    object_layer: int
    by_hand: Callable[..., tuple[Tensor, list[int]]]
    cut: Callable[[dict, int, int], dict]
    pixels: str
    placeholder: int
    tower: Callable[[Any], Any]
    layers: Callable[[Any], Any]
    projector: Callable[[Any], Any]
    attention: str = "self_attn"
    scored: tuple[str, ...] = ("q_proj", "k_proj")
    rest: tuple[str, ...] = ("v_proj", "out_proj", "fc1")
    graded: Callable[[Any, dict], Tensor] | None = None
    looked: Callable[[Any, dict], list[tuple[int, int, dict[str, Tensor]]]] | None = None
    clip: bool = True
    plain: Callable[[Any, dict], tuple[Any, dict]] = lambda model, arguments: (model, arguments)
    output: int = -2
    mrope: bool = False
    depth: tuple[int, int] = (9, 24)
    variable: str = "HIPRUNE_RETENTION"
    newlines: bool = False
    blanks: bool = False

    def model(self) -> Any:
        """A model of the test's own."""
        return _fresh(self)()

    def inputs(self, model: Any, images: Sequence[int], first: int = 0) -> dict:
        """Arguments for a left-padded batch of prompts with so many images each."""
        return self.prompts(model, images, first)

    def config(self, retention: int | float) -> HiPruneConfig:
        return HiPruneConfig(retention=retention, alpha=0.5, object_layer=self.object_layer)

    def alone(self, arguments: dict, images: Sequence[int]) -> list[dict]:
        """The prompts of a batch one by one, each with its images and without padding."""
        found, first = [], 0
        for number, count in enumerate(images):
            real = arguments["attention_mask"][number].bool()
            row = {n: arguments[n][number, real][None] for n in BY_TOKEN if n in arguments}
            found.append(row | (self.cut(arguments, first, first + count) if count else {}))
            first += max(count, 1) if self.blanks and any(images) else count
        return found

    def images(self, arguments: dict) -> tuple:
        """The arguments of a handle's encode_images."""
        sizes = arguments.get("image_sizes")
        return arguments[self.pixels], arguments.get("image_grid_thw") if sizes is None else sizes

    def answer(self, model: Any, arguments: dict, **settings: Any) -> list[list[int]]:
        """What generate adds to each prompt, greedily unless told otherwise."""
        settings = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0} | settings
        # Without an end token random weights go on to the full length, for more to compare.
        settings.setdefault("eos_token_id", -1 if PACKAGE else None)
        arguments = dict(arguments)
        ids = arguments.pop("input_ids")
        found = model.generate(ids, **arguments, **settings)
        return getattr(found, "sequences", found)[:, -STEPS:].tolist()

    def answer_by_hand(self, model: Any, arguments: dict, images: Sequence[int], **more: Any):
        """The same of the prompts pruned to a third by hand, one by one."""
        rows = self.alone(arguments, images)
        return [self.by_hand(model, row, self.third, STEPS, **more)[1] for row in rows]


@functools.cache
def _fresh(family: Family) -> Callable[[], Any]:
    return copier(family.make().to(DTYPE))


def copier(model: Any) -> Callable[[], Any]:
    """What gives copies of an unpatched model, as deepcopy does, in a fifth of its time."""
    tensors: dict[int, Tensor] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, found: Any) -> int | None:
            if isinstance(found, Tensor):
                tensors[id(found)] = found
                return id(found)
            return None

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, number: int) -> Tensor:
            return copy.deepcopy(tensors[number], self.copied)  # shared ones stay shared

    file = io.BytesIO()
    Pickler(file, pickle.HIGHEST_PROTOCOL).dump(model)

    def copied() -> Any:
        unpickler = Unpickler(io.BytesIO(file.getbuffer()))
        unpickler.copied = {}
        return unpickler.load()

    return copied


@contextmanager
def eager_towers(model: Any) -> Iterator[None]:
    """Within the block the maps of a model of transformers can be looked at."""
    before = model.config.vision_config._attn_implementation
    model.set_attn_implementation({"vision_config": "eager"})
    try:
        yield
    finally:
        model.set_attn_implementation({"vision_config": before})


def forward(model: Any, arguments: dict, **more: Any) -> Any:
    with torch.no_grad():
        return model(**arguments, **more)


def placed(logits: Tensor, rows: Sequence[Tensor], pads_right: Sequence[int]) -> list[Tensor]:
    """Of (B, T', V) logits each row's own, (T'_r, V): its padding on the right stays as it was."""
    width = logits.shape[1]
    return [
        line[width - pad - len(row) : width - pad]
        for line, row, pad in zip(logits, rows, pads_right, strict=True)
    ]


def check_rows(
    family: Family, model: Any, arguments: dict, images: Sequence[int], found: Tensor
) -> None:
    """(B, T', V) logits of left-padded prompts pruned to a third, against those by hand.

    ``model``: unpatched by now.
    """
    alone = family.alone(arguments, images)
    for line, row in zip(found, alone, strict=True):
        by_hand, _ = family.by_hand(model, row, family.third, 1)
        close(line[-len(by_hand) :], by_hand)


# Tolerances of torch.testing.assert_close: equal but for roundings; of what is made by hand, whose
# maps are float32.
_ROUNDED = 1e-5 if torch.float32 == DTYPE else 1e-9
EXACT, BY_HAND = {"rtol": _ROUNDED, "atol": _ROUNDED}, {"rtol": 1e-4, "atol": 1e-4}


def where_real(logits: Tensor, plain: dict) -> Tensor:
    """(B, T, V) logits without those at padded positions, which are nobody's result."""
    real = plain["attention_mask"].bool()
    # Not of this shape where placeholders grow within the model.
    return logits[real] if real.shape == logits.shape[:2] else logits


def close_where_real(found: Tensor, expected: Tensor, plain: dict) -> None:
    assert found.shape == expected.shape
    close(where_real(found, plain), where_real(expected, plain), exact=True)


def close(found: Any, expected: Any, exact: bool = False) -> None:
    torch.testing.assert_close(found, expected, **(EXACT if exact else BY_HAND))


def error_of(run: Callable[[], Any]) -> tuple[type[Exception], ...]:
    """What ``run`` raises, in a tuple; of an unpatched model, it may be raised patched as well."""
    return outcome(run)[1]


def outcome(run: Callable[[], Any]) -> tuple[Any, tuple[type[Exception], ...]]:
    """What ``run`` gives, and as of ``error_of`` what it raises in its place."""
    try:
        return run(), ()
    except Exception as error:
        return None, (type(error),)


def right_or_refused(
    run: Callable[[], Any], right: Any, *names: str, also: tuple[type[Exception], ...] = ()
) -> bool:
    """``run`` gives what is right, or a HiPruneError that names one of the arguments.

    Args:
        right: what the result has to be, or a function that checks it.
        also: errors that are no fault of ours.

    Returns:
        Whether it ran.
    """
    try:
        found = run()
    except also:
        return False
    except HiPruneError as error:
        assert any(name in str(error) for name in names), f"names none of {names}: {error}"
        return False
    if callable(right):
        right(found)
    else:
        assert found == right
    return True


def state(model: Any) -> dict:
    """Every attribute of every module, by identity, and every hook."""
    found = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            hooks = tuple(value.items()) if name.endswith("_hooks") else None
            found[path, name] = (id(value), hooks)
    return found
