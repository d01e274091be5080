"""Copies, files and memory of a patched model."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from family import check_rows, close, forward, right_or_refused
from matrix import over_families

import hiprune

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = [1, 2]


def disturb(model):
    """Other weights, in place."""
    torch.manual_seed(9)
    for parameter in model.parameters():
        parameter.data += 0.3 * parameter.std().nan_to_num(0) * torch.randn_like(parameter)
    return model


@over_families
def test_a_deep_copy_prunes_with_its_own_weights(family):
    model = family.model()
    arguments = family.inputs(model, BATCH)
    handle = hiprune.apply(model, family.config(family.third))
    before, answer = forward(model, arguments).logits, family.answer(model, arguments)
    copied, copied_handle = copy.deepcopy((model, handle))
    assert copied_handle is not handle
    disturb(copied)
    found = forward(copied, arguments).logits
    assert not torch.allclose(found, before)
    chosen = [s.indices for s in copied_handle.selections]
    assert family.answer(copied, arguments) != answer
    close(forward(model, arguments).logits, before, exact=True)

    copied_handle.remove()
    check_rows(family, copied, arguments, BATCH, found)
    fresh = hiprune.apply(copied, family.config(family.third))
    close(forward(copied, arguments).logits, found, exact=True)
    close([s.indices for s in fresh.selections], chosen)
    fresh.remove()
    # And the original is none the worse.
    close(forward(model, arguments).logits, before, exact=True)
    handle.remove()
    check_rows(family, model, arguments, BATCH, before)


@over_families
def test_removing_from_the_original_leaves_the_copy_pruned(family):
    model = family.model()
    arguments = family.inputs(model, BATCH)
    whole = forward(model, arguments).logits
    with hiprune.prune(model, family.config(family.third)):
        before = forward(model, arguments).logits
        copied = copy.deepcopy(model)
    close(forward(model, arguments).logits, whole, exact=True)
    close(forward(copied, arguments).logits, before, exact=True)
    del model
    gc.collect()
    close(forward(copied, arguments).logits, before, exact=True)


@over_families
@pytest.mark.parametrize("way", ["torch.save", "pickle"])
def test_saving_a_patched_model_whole(family, way):
    model = family.model()
    arguments = family.inputs(model, BATCH)

    def through():
        file = io.BytesIO()
        if way == "pickle":
            return pickle.loads(pickle.dumps(model))
        torch.save(model, file)
        return torch.load(io.BytesIO(file.getvalue()), weights_only=False)

    through()  # works unpatched, before a run: transformers' own hooks come with the first
    with hiprune.prune(model, family.config(family.third)):
        loaded = []
        right_or_refused(through, loaded.append, "remove()")
    through()
    with hiprune.prune(model, family.config(family.third)):
        expected = forward(model, arguments).logits
    for other in loaded:
        close(forward(other, arguments).logits, expected)


@over_families
def test_weights_of_a_patched_model_are_saved_as_ever(family, tmp_path):
    model = family.model()
    before = model.state_dict()
    with hiprune.prune(model, family.config(family.third)):
        after = model.state_dict()
        model.save_pretrained(tmp_path)
    assert list(after) == list(before)
    assert any(tmp_path.iterdir())


@over_families
def test_a_removed_handle_holds_no_model(family):
    """Nothing but references: no garbage collector is needed."""
    model = family.model()
    arguments = family.inputs(model, [1])
    forward(model, arguments)
    assert _gone([copy.deepcopy(model)]), "the unpatched model goes with its last reference"
    handle = hiprune.apply(model, family.config(family.third))
    forward(model, arguments)
    family.answer(model, arguments)
    handle.remove()
    held = [model]
    del model
    assert _gone(held)
    assert handle.selections, "what was kept can still be looked at"


def _gone(held):
    """Is a model freed as soon as the list with its last reference is emptied?"""
    gc.collect()
    gc.disable()
    try:
        seen = weakref.ref(held[0])
        held.clear()
        return seen() is None
    finally:
        gc.enable()


@over_families
def test_a_patched_model_that_is_dropped_is_freed(family):
    model = family.model()
    seen = weakref.ref(model)
    handle = hiprune.apply(model, family.config(family.third))
    forward(model, family.inputs(model, [1]))
    del handle, model
    gc.collect()
    assert seen() is None
