"""Several threads on one model, as a server has them: each gets its own image's answer."""

from __future__ import annotations

import threading

import pytest
import torch
from family import forward
from matrix import over_families

import hiprune

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [([1], 0), ([2], 1), ([0], 0), ([1, 2], 3), ([1], 2), ([3], 0)]


def together(*runs):
    """Each in a thread of its own, all at once; what each gave, or raised."""
    found, start = [None] * len(runs), threading.Barrier(len(runs))

    def go(number, run):
        start.wait()
        try:
            found[number] = run()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=go, args=pair) for pair in enumerate(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def often():
    """Threads take turns often, for what they share to show."""
    import sys

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@over_families
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_as_one_after_the_other(family, call, often):
    model = family.model()
    prompts = [family.inputs(model, images, first) for images, first in PROMPTS]

    def run(arguments):
        if call == "generate":
            return family.answer(model, arguments)
        return forward(model, arguments).logits.double().sum(-1).flatten().tolist()

    with hiprune.prune(model, family.config(family.third)):
        right = [run(arguments) for arguments in prompts]
        for _ in range(3):
            found = together(*(lambda a=arguments: run(a) for arguments in prompts))
            errors = [error for error in found if isinstance(error, BaseException)]
            assert not errors, errors
            if call == "generate":
                assert found == right
            else:
                for one, other in zip(found, right, strict=True):
                    assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


@over_families
def test_selections_are_those_of_the_calling_thread(family, often):
    model = family.model()
    prompts = [family.inputs(model, images, first) for images, first in PROMPTS if any(images)]
    with hiprune.prune(model, family.config(family.third)) as handle:

        def run(arguments):
            forward(model, arguments)
            return [selection.indices.tolist() for selection in handle.selections]

        right = [run(arguments) for arguments in prompts]
        here = handle.selections
        found = together(*(lambda a=arguments: run(a) for arguments in prompts))
        assert found == right
        assert handle.selections is here, "what other threads ran is not seen here"


@over_families
def test_an_error_in_one_thread_harms_no_other(family, often):
    model = family.model()
    good, bad = family.inputs(model, [1]), family.inputs(model, [2])
    bad |= family.cut(bad, 0, 1)  # an image is missing
    with hiprune.prune(model, family.config(family.third)):
        right = family.answer(model, good)
        for _ in range(3):
            runs = [lambda: family.answer(model, good), lambda: family.answer(model, bad)] * 2
            found = together(*runs)
            assert found[0] == found[2] == right
            assert isinstance(found[1], Exception) and isinstance(found[3], Exception)


@over_families
def test_remove_in_another_thread(family):
    """A handle is not bound to the thread that applied it."""
    model = family.model()
    arguments = family.inputs(model, [1])
    whole = forward(model, arguments).logits
    handle = hiprune.apply(model, family.config(family.third))
    (error,) = together(handle.remove)
    assert error is None
    assert torch.equal(forward(model, arguments).logits, whole)
