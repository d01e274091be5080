"""The `llava` package under real use: what the tests over all families leave to it."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("llava", reason="the llava package lives in .venv-llava alone")

from family import check_rows, close, forward
from llava_models import OUTPUT_LAYER, TOKENS
from matrix import over_families
from torch import nn

import hiprune
from hiprune import HiPruneError

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = [1, 2]


class Lora(nn.Module):
    """As peft puts it in the place of a linear layer, which it then calls."""

    def __init__(self, base: nn.Linear, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.base_layer = base
        self.down = nn.Linear(base.in_features, 4, bias=False)
        self.up = nn.Linear(4, base.out_features, bias=False)
        nn.init.normal_(self.up.weight, std=0.5)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))

    def merged(self) -> nn.Linear:
        self.base_layer.weight.data += self.up.weight.data @ self.down.weight.data
        return self.base_layer


def put_lora_on(family, model, names=("q_proj", "k_proj")):
    for number, layer in enumerate(family.layers(model)):
        for name in names:
            setattr(layer.self_attn, name, Lora(getattr(layer.self_attn, name), number))


@over_families
@pytest.mark.parametrize("names", [("q_proj", "k_proj"), ("v_proj", "out_proj")])
def test_lora_put_on_and_merged_while_applied(family, names):
    model = family.model()
    arguments = family.inputs(model, BATCH)
    handle = hiprune.apply(model, family.config(family.third))
    before = forward(model, arguments).logits
    put_lora_on(family, model, names)
    found = forward(model, arguments).logits
    assert not torch.allclose(found, before)
    for layer in family.layers(model):
        for name in names:
            setattr(layer.self_attn, name, getattr(layer.self_attn, name).merged())
    close(forward(model, arguments).logits, found)
    handle.remove()
    check_rows(family, model, arguments, BATCH, found)


def features_of(family, model, arguments):
    """Of the images one by one, whole: (sum of V, N, C_v)."""
    images = arguments["images"]
    images = images if isinstance(images, list) else list(images)
    with torch.no_grad():
        return [model.get_vision_tower()(x if x.ndim == 4 else x[None]) for x in images]


@over_families
def test_the_tower_is_whole_and_encode_images_is_pruned(family):
    """encode_images is where the package, and code of others, takes the projector's features."""
    model = family.model()
    arguments = family.inputs(model, [2])
    expected = features_of(family, model, arguments)
    pixels = arguments["images"][0]
    pixels = pixels if pixels.ndim == 4 else pixels[None]
    with torch.no_grad():
        whole = model.encode_images(pixels)
    with hiprune.prune(model, family.config(family.third)) as pruned:
        close(features_of(family, model, arguments), expected, exact=True)
        assert pruned.selections == []
        forward(model, arguments)
        before = pruned.selections
        close(features_of(family, model, arguments), expected, exact=True)
        assert pruned.selections is before
        with torch.no_grad():
            kept = model.encode_images(pixels)  # each view for itself
            text = model.model(inputs_embeds=torch.ones(1, 3, model.config.hidden_size))
    assert kept.shape[1] == min(family.third, TOKENS)
    for features, view, selection in zip(kept, whole, pruned.selections, strict=True):
        close(features, view[selection.indices[0]])
    with torch.no_grad():
        right = model.model(inputs_embeds=torch.ones(1, 3, model.config.hidden_size))
    close(text.last_hidden_state, right.last_hidden_state, exact=True)


@over_families
@pytest.mark.parametrize("which", ["this", "another"])
def test_a_call_within_a_call_has_views_of_its_own(family, which):
    """As many views as the outer call's, encoded as images, while that call prepares its prompt."""
    model, other, found = family.model(), family.model(), []
    arguments = family.inputs(model, [2])
    images = arguments["images"]
    pixels = torch.cat(images) if isinstance(images, list) else images.flatten(0, -4)
    config = family.config(TOKENS // 3)
    inner = model if which == "this" else other
    with hiprune.prune(model, config) as pruned, hiprune.prune(other, config) as others:
        handle = pruned if inner is model else others
        with torch.no_grad():
            expected = handle.encode_images(pixels, None)

        def within(*_):
            hook.remove()
            if inner is model:
                found.append(handle.encode_images(pixels, None))
            else:  # as the package calls it
                found.append(list(other.encode_images(pixels)))

        hook = model.model.mm_projector.register_forward_pre_hook(within)
        logits = forward(model, arguments).logits
        (alone,) = found
        close(forward(model, arguments).logits, logits, exact=True)
    assert len(alone) == len(pixels)
    close(alone, expected, exact=True)


@over_families
def test_a_hook_on_the_packages_tower_sees_all_of_its_features(family):
    model, seen = family.model(), []
    arguments = family.inputs(model, [2])
    expected = torch.cat(features_of(family, model, arguments))
    with hiprune.prune(model, family.config(family.third)):
        logits = forward(model, arguments).logits
        model.get_vision_tower().register_forward_hook(lambda m, args, out: seen.append(out))
        close(forward(model, arguments).logits, logits)
    close(seen, [expected])


@over_families
def test_attention_is_fused_where_nobody_looks(family, monkeypatch):
    """transformers 4.37 knows eager attention alone."""
    model, calls = family.model(), []
    arguments = family.inputs(model, [1])
    fused = torch.nn.functional.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        calls.append(kwargs.get("scale") is not None)  # the language model gives none
        return fused(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with hiprune.prune(model, family.config(family.third)):
        forward(model, arguments)
        assert sum(calls) == OUTPUT_LAYER
        calls.clear()
        family.layers(model)[-1].register_forward_hook(lambda *_: None)
        forward(model, arguments)
        assert sum(calls) == 0


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def let_gradients_through(tower):
    """As forks of the package do, whose own tower runs without."""

    def run(images):
        found = tower.vision_tower(images, output_hidden_states=True)
        return found.hidden_states[tower.select_layer][:, 1:]

    tower.forward = run


@over_families
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_tower_that_lets_gradients_through_gets_them(family, late, checkpointing):
    model = family.model().requires_grad_(True).train()
    arguments = family.inputs(model, [1])
    tower = model.get_vision_tower()
    target = torch.randn(model.config.hidden_size)
    pixels = torch.cat([x if x.ndim == 4 else x[None] for x in arguments["images"]])

    def gradients_by_hand(selections):
        kept = [selection.indices for selection in selections]
        features = model.model.mm_projector(tower.vision_tower(
            pixels, output_hidden_states=True
        ).hidden_states[tower.select_layer][:, 1:])  # fmt: skip
        rows = torch.cat(kept).unsqueeze(-1).expand(-1, -1, features.shape[-1])
        return gradients(model, (features.gather(1, rows) @ target).pow(2).sum())

    if not late:
        let_gradients_through(tower)
    with hiprune.prune(model, family.config(family.third)) as pruned:
        if late:
            let_gradients_through(tower)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        kept = model.encode_images(pixels)
        found = gradients(model, (kept @ target).pow(2).sum())
        model.gradient_checkpointing_disable()
        expected = gradients_by_hand(pruned.selections)
    assert any("vision_tower" in name for name in found)
    assert found.keys() == expected.keys()
    close(found, expected)


@over_families
def test_the_packages_own_tower_gets_no_gradient_as_unpatched(family):
    model = family.model().requires_grad_(True)
    arguments = family.inputs(model, [1])
    with hiprune.prune(model, family.config(family.third)):
        found = gradients(model, model(**arguments).logits.pow(2).mean())
    assert not any("vision_tower" in name for name in found)
    assert any("mm_projector" in name for name in found)


class Once:
    """A hook that asks something else, once."""

    def __init__(self, ask):
        self.ask, self.found = ask, None

    def __call__(self, *_):
        if self.found is None:
            self.found = "asking"
            self.found = self.ask()


@over_families
@pytest.mark.parametrize("same", [True, False])
def test_images_encoded_while_a_prompt_is_prepared(family, same):
    """What lies in views belongs to the call: of the same model, and of another."""
    model, other = family.model(), family.model()
    arguments, others = family.inputs(model, BATCH), family.inputs(model, [3], first=1)
    with (
        hiprune.prune(model, family.config(family.third)) as handle,
        hiprune.prune(other, family.config(family.third)) as others_handle,
    ):
        encoder, encodes = (handle, model) if same else (others_handle, other)
        pixels = torch.randn(2, 3, 84, 84)

        @torch.no_grad()
        def ask():
            images = encoder.encode_images(others["images"], others["image_sizes"])
            return images, encodes.encode_images(pixels)

        expected, right = ask(), forward(model, arguments).logits
        # While the tower runs, and after it.
        for module in (family.layers(model)[0], model.model.mm_projector):
            once = Once(ask)
            hook = module.register_forward_pre_hook(once)
            close(forward(model, arguments).logits, right, exact=True)
            hook.remove()
            close(once.found, expected, exact=True)


@over_families
def test_a_wrapper_over_encode_images_stays(family):
    model, calls = family.model(), []
    arguments = family.inputs(model, [1])
    whole = forward(model, arguments).logits
    handle = hiprune.apply(model, family.config(family.third))
    ours = model.encode_images
    model.encode_images = lambda images: calls.append(len(images)) or ours(images)
    assert forward(model, arguments).logits.shape[1] < whole.shape[1]
    handle.remove()
    close(forward(model, arguments).logits, whole, exact=True)
    assert len(calls) == 2
    with pytest.raises(HiPruneError, match="encode_images: HiPrune was removed"):
        handle.encode_images(arguments["images"])


@over_families
def test_images_that_are_missing_are_told_before_the_tower_runs(family):
    model, ran = family.model(), []
    arguments = family.inputs(model, [1, 0, 2])
    arguments |= family.cut(arguments, 0, 3)
    family.layers(model)[0].register_forward_hook(lambda *_: ran.append(1))
    with hiprune.prune(model, family.config(family.third)):
        with pytest.raises(HiPruneError, match=r"images: 3 for prompts with \[1, 0, 2\]"):
            forward(model, arguments)
    assert not ran
