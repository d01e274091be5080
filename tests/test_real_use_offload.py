"""accelerate's hooks and torch.compile, put on before apply or over it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from family import close, error_of, forward, right_or_refused
from matrix import FAMILIES, over_families

import hiprune

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = [1, 2]
accelerate = pytest.importorskip("accelerate")


def forget():
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


@pytest.fixture(autouse=True)
def _no_state_of_accelerate():
    """Which it keeps for the process, this file's and what ran before it."""
    forget()
    yield
    forget()


@over_families
def test_prepared_for_bf16_after_apply(family):
    """remove() takes ours off, not accelerate's autocast; unwrapping goes on working."""
    model = family.model().float()
    arguments = as_float(family.inputs(model, BATCH))
    whole = forward(model, arguments).logits
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    right = forward(accelerator.prepare(family.model().float()), arguments).logits
    assert not torch.equal(right, whole)

    handle = hiprune.apply(model, family.config(family.third))
    pruned = forward(model, arguments).logits
    prepared = accelerator.prepare(model)
    assert forward(prepared, arguments).logits.shape == pruned.shape
    handle.remove()
    assert torch.equal(forward(prepared, arguments).logits, right)
    back = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert torch.equal(forward(back, arguments).logits, whole)


@over_families
def test_unwrapped_while_applied(family):
    model = family.model().float()
    arguments = as_float(family.inputs(model, BATCH))
    whole = forward(model, arguments).logits
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    handle = hiprune.apply(model, family.config(family.third))
    pruned = forward(model, arguments).logits
    back = accelerator.unwrap_model(accelerator.prepare(model), keep_fp32_wrapper=False)
    assert torch.equal(forward(back, arguments).logits, pruned)
    handle.remove()
    assert torch.equal(forward(back, arguments).logits, whole)


@over_families
def test_prepared_before_apply(family):
    model = family.model().float()
    arguments = as_float(family.inputs(model, BATCH))
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(model)
    right = forward(prepared, arguments).logits
    with hiprune.prune(model, family.config(family.third)) as handle:
        forward(prepared, arguments)
        assert handle.selections
    assert torch.equal(forward(prepared, arguments).logits, right)


def as_float(arguments):
    def turn(value):
        if isinstance(value, list):
            return [turn(part) for part in value]
        return value.float() if torch.is_tensor(value) and value.is_floating_point() else value

    return {name: turn(value) for name, value in arguments.items()}


@over_families
def test_offloaded_over_the_patch_then_removed(family):
    """Hooks on, remove(), hooks off: the model is unpatched, and can be patched again."""
    from accelerate.hooks import remove_hook_from_submodules

    model, other, cpu = family.model(), family.model(), torch.device("cpu")
    arguments = family.inputs(model, BATCH)
    whole = forward(model, arguments).logits
    accelerate.cpu_offload(other, execution_device=cpu)
    if error_of(lambda: forward(other, arguments)):
        pytest.skip(
            "nor does the unpatched model run offloaded: it asks its weights where they are"
        )
    handle = hiprune.apply(model, family.config(family.third))
    pruned = forward(model, arguments).logits
    accelerate.cpu_offload(model, execution_device=cpu)
    close(forward(model, arguments).logits, pruned, exact=True)
    handle.remove()
    close(forward(model, arguments).logits, whole, exact=True)
    remove_hook_from_submodules(model)
    close(forward(model, arguments).logits, whole, exact=True)
    with hiprune.prune(model, family.config(family.third)):
        close(forward(model, arguments).logits, pruned, exact=True)
    close(forward(model, arguments).logits, whole, exact=True)


@over_families
@pytest.mark.parametrize("off_first", [True, False])
def test_a_hook_added_over_the_patch_stays(family, off_first):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Counting(ModelHook):
        seen = 0

        def pre_forward(self, module, *args, **kwargs):
            type(self).seen += 1
            return args, kwargs

    model = family.model()
    arguments = family.inputs(model, BATCH)
    whole = forward(model, arguments).logits
    layer = family.layers(model)[family.output]
    handle = hiprune.apply(model, family.config(family.third))
    pruned = forward(model, arguments).logits
    for module in (model, family.tower(model), layer, getattr(layer, family.attention)):
        add_hook_to_module(module, Counting())
    close(forward(model, arguments).logits, pruned)
    assert Counting.seen == 4
    modules = (model, family.tower(model), layer, getattr(layer, family.attention))
    if off_first:
        for module in modules:
            remove_hook_from_module(module)
        close(forward(model, arguments).logits, pruned, exact=True)
        handle.remove()
    else:
        handle.remove()
        close(forward(model, arguments).logits, whole, exact=True)
        assert Counting.seen == 8
        for module in modules:
            remove_hook_from_module(module)
    close(forward(model, arguments).logits, whole, exact=True)
    with hiprune.prune(model, family.config(family.third)):
        close(forward(model, arguments).logits, pruned, exact=True)


# Others' towers are looked at by the same code (CLIP's and Qwen's); compiling takes seconds.
TOWERS = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")
over_towers = pytest.mark.parametrize(
    "family", [f for n, f in FAMILIES.items() if n in TOWERS], ids=lambda f: f.name
)


@pytest.fixture
def dynamo(monkeypatch):
    # It measures the guards of all that it compiles, with an empty cache.
    monkeypatch.setattr("torch._dynamo.guards.profile_guard_manager", lambda *_: 0.0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@over_towers
@pytest.mark.parametrize("what", ["model", "tower", "layers"])
def test_compiled_and_run_before_apply(family, what, dynamo):
    """Dynamo does not look for hooks added later: pruned, or a message that says to apply first."""
    model = family.model()
    traced = what == ("tower" if family.name == "llava" else "layers")
    config = family.config(family.third)
    if traced and what == "tower":  # a second a layer
        del family.layers(model)[3:]
        family.tower(model).config.num_hidden_layers = 3
        config = dataclasses.replace(config, object_layer=1)
    arguments = family.inputs(model, [1])
    with hiprune.prune(model, config):
        right = forward(model, arguments).logits
    compiled = {
        "model": lambda: [model],
        "tower": lambda: [family.tower(model)],
        "layers": lambda: [family.layers(model)[family.object_layer - 1]],
    }[what]()
    for module in compiled:
        module.compile(backend="eager")
    # Tracing takes half a minute for a model and ten seconds for a tower: but for one each, they
    # are marked as compiled, and run as they are.
    torch.compiler.set_stance("default" if traced else "force_eager")
    try:
        forward(model, arguments)

        def run():
            with hiprune.prune(model, config):
                return forward(model, arguments).logits

        right_or_refused(run, lambda found: close(found, right), "compile")
    finally:
        torch.compiler.set_stance("default")
