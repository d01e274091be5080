"""CLIP's tower under the patch: cut short where nobody sees it, as it is where somebody looks."""

from __future__ import annotations

import copy

import pytest
import torch
from family import check_rows, close, forward, state
from matrix import FAMILIES

import hiprune
from hiprune import HiPruneConfig

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = [1, 2]
TOWERS = {name: family for name, family in FAMILIES.items() if family.clip}
over_towers = pytest.mark.parametrize("family", TOWERS.values(), ids=TOWERS)


def output_layer(family, model):
    return family.layers(model)[-2]


@pytest.fixture
def ran(monkeypatch):
    """Tokens of a view that the MLPs of a model's tower saw, by layer; told without hooks."""

    def watch(family, model):
        found: dict[int, list[int]] = {}
        numbers = {layer.mlp.fc2: n for n, layer in enumerate(family.layers(model), 1)}
        linear = torch.nn.Linear.forward

        def forward_of(module, x):
            if module in numbers:
                found.setdefault(numbers[module], []).append(x.shape[1])
            return linear(module, x)

        monkeypatch.setattr(torch.nn.Linear, "forward", forward_of)
        return found

    return watch


def is_short(family, model, found) -> bool:
    """Did the pass skip what nobody sees? Either all of it is skipped or nothing."""
    layers, whole = len(family.layers(model)), max(found[1])
    if layers in found:
        assert found[layers - 1] == found[layers] == found[1]
        return False
    assert max(found[layers - 1]) < whole
    return True


def hook_on(module):
    module.register_forward_hook(lambda *_: None)


def pre_hook_on(module):
    module.register_forward_pre_hook(lambda *_: None)


def own_forward(module):
    original = module.forward
    module.forward = lambda *args, **kwargs: original(*args, **kwargs)


def dropout(attention):
    attention.dropout = 0.1
    attention.train()


LOOKS = {
    "hook on the tower": lambda f, m: hook_on(f.tower(m)),
    "hook on what holds the layers": lambda f, m: pre_hook_on(f.tower(m).encoder),
    "hook on the output layer": lambda f, m: hook_on(output_layer(f, m)),
    "hook on its MLP": lambda f, m: pre_hook_on(output_layer(f, m).mlp.fc1),
    "hook on the last layer's attention": lambda f, m: hook_on(f.layers(m)[-1].self_attn),
    "hook on the last norm": lambda f, m: hook_on(f.tower(m).post_layernorm),
    "a forward of one's own": lambda f, m: own_forward(output_layer(f, m).self_attn),
    "the tower's configuration": lambda f, m: setattr(
        f.tower(m).config, "output_hidden_states", True
    ),
    "dropout": lambda f, m: dropout(output_layer(f, m).self_attn),
    "compiled": lambda f, m: output_layer(f, m).compile(backend="eager"),
}


@over_towers
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("look", LOOKS)
def test_the_tower_runs_as_it_is_where_somebody_looks(family, look, late, ran, request):
    """Late: what looks comes over the patch."""
    if look == "compiled":
        # LLaVA-NeXT has the same tower: marked as compiled, and not traced for seconds once more.
        torch._dynamo.reset()
        torch.compiler.set_stance("default" if family.name == "llava" else "force_eager")
        request.addfinalizer(lambda: torch.compiler.set_stance("default"))
    model = family.model()
    arguments = family.inputs(model, BATCH)
    with hiprune.prune(model, family.config(family.third)) as pruned:
        expected = forward(model, arguments).logits
        chosen = [selection.indices for selection in pruned.selections]
    if not late:
        LOOKS[look](family, model)
    with hiprune.prune(model, family.config(family.third)) as pruned:
        if late:
            LOOKS[look](family, model)
        if look != "compiled":
            found = ran(family, model)
        logits = forward(model, arguments).logits
        if look != "compiled":  # whose trace holds what Linear was
            assert not is_short(family, model, found)
        assert [selection.indices.shape for selection in pruned.selections] == [
            indices.shape for indices in chosen
        ]
        if look != "dropout":
            close(logits, expected)
            close([selection.indices for selection in pruned.selections], chosen)


@over_towers
@pytest.mark.parametrize(
    "what", ["nothing", "hook on another layer", "hook on the projector", "eval", "train"]
)
def test_the_tower_is_cut_short_where_nobody_looks(family, what, ran):
    model = family.model()
    if what == "hook on another layer":
        hook_on(family.layers(model)[0])
        hook_on(family.layers(model)[family.object_layer - 1].self_attn)
    elif what == "hook on the projector":
        hook_on(family.projector(model))
    elif what == "train":
        model.train()
    with hiprune.prune(model, family.config(family.third)):
        found = ran(family, model)
        forward(model, family.inputs(model, BATCH))
    assert is_short(family, model, found)


@over_towers
def test_it_is_cut_short_once_hooks_are_gone(family, ran):
    """Also after accelerate's, which leave the class's forward on the instance."""
    hooks = pytest.importorskip("accelerate.hooks")
    model = family.model()
    arguments = family.inputs(model, BATCH)
    layer = output_layer(family, model)
    with hiprune.prune(model, family.config(family.third)):
        modules = [layer, layer.self_attn, layer.mlp]
        for module in modules:
            hooks.add_hook_to_module(module, hooks.ModelHook())
        found = ran(family, model)
        forward(model, arguments)
        assert not is_short(family, model, found)
        for module in modules:
            hooks.remove_hook_from_module(module)
        hook = layer.register_forward_hook(lambda *_: None)
        hook.remove()
        found.clear()
        forward(model, arguments)
        assert is_short(family, model, found)


@over_towers
def test_gradients_decide_as_well(family, ran):
    model = family.model().requires_grad_(False)
    arguments = family.inputs(model, BATCH)
    family.projector(model).requires_grad_(True)
    with hiprune.prune(model, family.config(family.third)):
        found = ran(family, model)
        model(**arguments)
        assert is_short(family, model, found), "nothing of the tower learns"
        for layer in (family.layers(model)[0], output_layer(family, model)):
            layer.mlp.fc1.requires_grad_(True)
            found.clear()
            model(**arguments)
            assert not is_short(family, model, found)
            found.clear()
            forward(model, arguments)
            assert is_short(family, model, found), "nobody asks for gradients"
            layer.requires_grad_(False)


@over_towers
def test_a_hook_that_brings_in_something_that_learns(family):
    """Prompt tuning by hooks: what learns is no parameter of the tower."""
    model = family.model().requires_grad_(False)
    arguments = family.inputs(model, BATCH)
    layer = family.layers(model)[0]
    width = layer.mlp.fc1.in_features
    learns = torch.zeros(width, dtype=next(model.parameters()).dtype, requires_grad=True)
    layer.mlp.register_forward_hook(lambda m, args, out: out + learns)

    def gradient():
        learns.grad = None
        loss = model(**arguments).logits.pow(2).mean()
        if loss.requires_grad:
            loss.backward()
        return learns.grad

    plain = gradient()
    with hiprune.prune(model, family.config(family.third)):
        found = gradient()
    assert (plain is None) == (found is None)  # the `llava` package's tower gives nobody any
    if plain is not None:
        assert found.abs().sum() > 0


@over_towers
def test_an_object_layer_beyond_the_output_layer(family):
    """The paper's ablation: layers after the output layer run, with the same tokens kept."""
    model = family.model()
    arguments = family.inputs(model, BATCH)
    config = HiPruneConfig(family.third, alpha=0.5, object_layer=len(family.layers(model)))
    with hiprune.prune(model, config) as pruned:
        expected = forward(model, arguments).logits
        chosen = [selection.indices for selection in pruned.selections]
        hook_on(output_layer(family, model))
        close(forward(model, arguments).logits, expected)
        close([selection.indices for selection in pruned.selections], chosen)


@over_towers
def test_nothing_of_a_call_stays_on_the_model(family):
    """Nor on the handle, the tower's data or the hooks, also after an exception half-way."""
    model = family.model()
    arguments = family.inputs(model, BATCH)
    forward(model, arguments)  # transformers' own hooks come with the first run
    handle = hiprune.apply(model, family.config(family.third))
    stopped = family.projector(model)

    def seen():
        own = {n: id(v) for n, v in vars(handle).items()}
        return state(model), own, {n: id(v) for n, v in vars(handle.tower).items()}

    before = seen()
    forward(model, arguments)
    assert seen() == before

    def stop(*_):
        raise KeyboardInterrupt

    for module in (stopped, family.layers(model)[1], output_layer(family, model).self_attn):
        expected = forward(model, arguments).logits
        hook = module.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            forward(model, arguments)
        hook.remove()
        assert seen() == before
        close(forward(model, arguments).logits, expected, exact=True)
    handle.remove()


@over_towers
@pytest.mark.parametrize("call", ["model", "tower"])
def test_another_model_within_a_pass(family, call):
    """A hook on one tower that asks another patched model: neither sees the other's pass."""
    model, other = family.model(), family.model()
    arguments, others = family.inputs(model, BATCH), family.inputs(model, [1], first=2)
    pixels = torch.randn(1, 3, 84, 84, dtype=next(model.parameters()).dtype)

    def ask():
        with torch.no_grad():
            return family.tower(other)(pixels)[0] if call == "tower" else other(**others).logits

    with (
        hiprune.prune(model, family.config(family.third)) as pruned,
        hiprune.prune(other, family.config(family.full)) as others_pruned,
    ):
        expected = forward(model, arguments).logits
        chosen = [selection.indices for selection in pruned.selections]
        right, found = ask(), []
        for layer in (family.layers(model)[0], family.layers(model)[family.object_layer - 1]):
            hook = layer.register_forward_hook(lambda *_: found.append(ask()))
            close(forward(model, arguments).logits, expected, exact=True)
            hook.remove()
            close(found.pop(), right, exact=True)
        close([selection.indices for selection in pruned.selections], chosen, exact=True)
        assert len(others_pruned.selections) == (call == "model")


@over_towers
def test_an_mlp_put_in_after_apply_is_run(family):
    """In the output layer, whose second half runs for kept tokens alone."""
    model = family.model()
    arguments = family.inputs(model, BATCH)
    with hiprune.prune(model, family.config(family.third)):
        layer = output_layer(family, model)
        own = copy.deepcopy(layer.mlp)
        own.fc2.weight.data *= 1.5
        before = forward(model, arguments).logits
        layer.mlp = own
        found = forward(model, arguments).logits
    assert not torch.allclose(found, before)
    check_rows(family, model, arguments, BATCH, found)
