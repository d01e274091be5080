"""What people wrap models in and hook them with, before or after apply; apply that fails."""

from __future__ import annotations

import pytest
import torch
from family import check_rows, close, forward, state
from matrix import over_families

import hiprune
from hiprune import HiPruneError

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = [1, 2]


@over_families
@pytest.mark.parametrize("late", [True, False])
def test_hooks_of_others_fire(family, late):
    """On the tower, the output layer, its attention and MLP, the scored layer, the projector."""
    model, fired = family.model(), []
    arguments = family.inputs(model, BATCH)
    layers = family.layers(model)
    output = family.output
    modules = {
        "tower": family.tower(model),
        "output layer": layers[output],
        "its attention": getattr(layers[output], family.attention),
        "its mlp": layers[output].mlp,
        "object layer": layers[family.object_layer - 1],
        "scored projection": getattr(
            getattr(layers[family.object_layer - 1], family.attention), family.scored[0]
        ),
        "projector": family.projector(model),
    }

    def hook():
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda m, args, n=name: fired.append(("before", n)))
            module.register_forward_hook(lambda m, args, out, n=name: fired.append(("after", n)))

    with hiprune.prune(model, family.config(family.third)):
        expected = forward(model, arguments).logits
    if not late:
        hook()
    with hiprune.prune(model, family.config(family.third)):
        if late:
            hook()
        found = forward(model, arguments).logits
    close(found, expected)
    assert {(when, name) for when in ("before", "after") for name in modules} == set(fired)


@over_families
@pytest.mark.parametrize("where", ["attention", "layer", "object layer"])
def test_a_hook_that_changes_what_passes_is_heeded(family, where):
    """As steering and adapters by hooks do; the hand-made forward has the same hooks."""
    model = family.model()
    arguments = family.inputs(model, BATCH)
    layers = family.layers(model)
    layer = layers[family.output]
    layer = layers[family.object_layer - 1] if where == "object layer" else layer
    module = getattr(layer, family.attention) if where == "attention" else layer

    def change(module, args, out):
        if isinstance(out, tuple):
            return (1.5 * out[0], *out[1:])
        return 1.5 * out

    other = family.model()  # transformers' own hooks come with the first run, and come first then
    with hiprune.prune(other, family.config(family.third)):
        before = forward(other, arguments).logits
    with hiprune.prune(model, family.config(family.third)):
        module.register_forward_hook(change)
        found = forward(model, arguments).logits
    assert not torch.allclose(found, before)
    check_rows(family, model, arguments, BATCH, found)


class Stop(Exception):
    pass


@over_families
@pytest.mark.parametrize(
    "what", ["__setattr__", "register_forward_hook", "register_forward_pre_hook"]
)
def test_apply_that_fails_half_way_changes_nothing(family, what, monkeypatch):
    model = family.model()
    forward(model, family.inputs(model, [1]))  # transformers' own hooks come with the first run
    before, original = state(model), getattr(torch.nn.Module, what)
    for at in range(100):
        with monkeypatch.context() as patch:

            def failing(self, *args, calls=iter(range(at, -1, -1)), **kwargs):  # noqa: B008
                if next(calls, None) == 0:  # once; undoing may call it again
                    raise Stop
                return original(self, *args, **kwargs)

            patch.setattr(torch.nn.Module, what, failing)
            try:
                handle = hiprune.apply(model, family.config(family.third))
            except Stop:
                handle = None
        if handle is not None:
            break
        assert state(model) == before
    assert handle is not None
    handle.remove()
    assert state(model) == before


def wrapped(name, model):
    if name == "PeftModel":
        peft = pytest.importorskip("peft")
        made = peft.LoraConfig(r=2, target_modules=["up_proj"])
        return peft.get_peft_model(model, made)
    if name == "OptimizedModule":
        return torch.compile(model, backend="eager")
    if name == "DataParallel":
        return torch.nn.DataParallel(model)
    if name == "DistributedDataParallel":
        if not torch.distributed.is_initialized():
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        return torch.nn.parallel.DistributedDataParallel(model)
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    prepared = Accelerator(cpu=True).prepare(model)
    AcceleratorState._reset_state(True)
    return prepared


@over_families
@pytest.mark.parametrize(
    "name", ["PeftModel", "OptimizedModule", "DataParallel", "DistributedDataParallel", "prepared"]
)
def test_wrappers_given_to_apply(family, name):
    """Unwrapped; or the message names what to pass."""
    model = family.model()
    arguments = family.inputs(model, BATCH)
    with hiprune.prune(model, family.config(family.third)):
        expected = forward(model, arguments).logits
    around = wrapped(name, model)
    inside = {
        "PeftModel": "base_model", "OptimizedModule": "_orig_mod", "DataParallel": "module",
        "DistributedDataParallel": "module", "prepared": "module",
    }[name]  # fmt: skip
    try:
        handle = hiprune.apply(around, family.config(family.third))
    except HiPruneError as error:
        assert inside in str(error) or "get_base_model" in str(error)
        return
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    # The model within is pruned, whoever calls it.
    found = forward(model, arguments).logits
    handle.remove()
    close(found, expected)
    assert forward(model, arguments).logits.shape[1] > expected.shape[1]


@over_families
def test_applied_where_tensors_are_made_on_the_meta_device(family):
    """As while a model's weights are still to come: what HiPrune keeps has to be there."""
    model = family.model()
    arguments = family.inputs(model, BATCH)
    with torch.device("meta"):
        handle = hiprune.apply(model, family.config(family.third))
    found = forward(model, arguments).logits
    handle.remove()
    check_rows(family, model, arguments, BATCH, found)
