"""Training: gradients, checkpointing, and LoRA put on, merged or taken off under the patch."""

from __future__ import annotations

import copy

import pytest
import torch
from family import check_rows, close, forward
from matrix import over_families, over_transformers

import hiprune

pytestmark = pytest.mark.usefixtures("one_thread")
# What of a tower's layers gets a LoRA: what is scored, what follows it, or both.
LORA, REST, BOTH = ("scored",), ("rest",), ("scored", "rest")


def gradients(model, arguments, labels):
    """Name -> gradient of the loss, of what required one; pixels included where they do."""
    model.zero_grad(set_to_none=True)
    model(**arguments, labels=labels).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def labels_of(family, arguments):
    labels = arguments["input_ids"].masked_fill(~arguments["attention_mask"].bool(), -100)
    return labels.masked_fill(labels == family.placeholder, -100)


def with_labels(family, model):
    arguments = family.inputs(model, [1, 2])
    return arguments, labels_of(family, arguments)


@over_families
def test_gradients_with_everything_kept(family):
    """Of the very parameters that get one unpatched, and of the pixels."""
    model = family.model()
    arguments, labels = with_labels(family, model)
    plain, whole = family.plain(model, arguments | {"labels": labels})
    for asked in (arguments, whole):
        if isinstance(asked[family.pixels], torch.Tensor):
            asked[family.pixels] = asked[family.pixels].clone().requires_grad_()
    expected = gradients(plain, whole, whole.pop("labels"))
    with hiprune.prune(model, family.config(family.full)):
        found = gradients(model, arguments, labels)
    assert found.keys() == expected.keys()
    close(found, expected)
    if isinstance(whole[family.pixels], torch.Tensor):
        wanted = whole[family.pixels].grad
        got = arguments[family.pixels].grad
        assert (got is None) == (wanted is None)
        if wanted is not None:
            close(got, wanted)


@over_transformers
def test_gradients_of_a_pruned_prompt_are_those_made_by_hand(family):
    model = family.model()
    arguments = family.inputs(model, [1])
    labels = labels_of(family, arguments)
    (row,) = family.alone(arguments, [1])
    by_hand = family.model()  # of the same weights
    logits = family.graded(by_hand, row)
    ids = labels[0, -4:]
    torch.nn.functional.cross_entropy(logits[-5:-1].float(), ids).backward()
    expected = {n: p.grad for n, p in by_hand.named_parameters() if p.grad is not None}
    tail = labels.clone()
    tail[:, :-4] = -100
    with hiprune.prune(model, family.config(family.third)):
        found = gradients(model, arguments, tail)
    tower = [n for n in expected if "_tower" in n or "visual" in n]
    assert any(expected[n].abs().sum() > 0 for n in tower), "the tower learns"
    missing = [n for n in expected if n not in found and expected[n].abs().sum() > 0]
    assert not missing
    for name, gradient in expected.items():
        if name in found:
            close(found[name], gradient)


@over_families
@pytest.mark.parametrize(("reentrant", "late"), [(False, False), (False, True), (True, False)])
def test_gradient_checkpointing_changes_no_gradient(family, reentrant, late):
    """Turned on before or after apply; layers are run anew by the backward pass."""
    model = family.model().train()
    arguments, labels = with_labels(family, model)
    for budget in (family.full, family.third):
        with hiprune.prune(model, family.config(budget)):
            expected = gradients(model, arguments, labels)
        turn_on = lambda: model.gradient_checkpointing_enable(  # noqa: E731
            gradient_checkpointing_kwargs={"use_reentrant": reentrant}
        )
        if not late:
            turn_on()
        with hiprune.prune(model, family.config(budget)):
            if late:
                turn_on()
            if reentrant:  # which needs an input that wants a gradient
                model.enable_input_require_grads()
            found = gradients(model, arguments, labels)
            if reentrant:
                model.disable_input_require_grads()
        model.gradient_checkpointing_disable()
        if reentrant:  # the unpatched tower's pixels want none: it gets what it would have got
            expected = {n: g for n, g in expected.items() if n in found}
            assert any("lm_head" in n or "mlp" in n for n in found)
        assert found.keys() == expected.keys()
        close(found, expected)


@over_families
def test_generate_keeps_nothing_for_a_backward_pass(family):
    model = family.model()
    arguments, kept = family.inputs(model, [1, 2]), []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.shape) or t, lambda t: t
    )
    with hiprune.prune(model, family.config(family.third)), hooks:
        family.answer(model, arguments)
    assert not kept


def lora(family, model, targets, **more):
    """A LoRA large enough to change what is kept."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    names = [name for target in targets for name in getattr(family, target)]
    modules = [
        name for name, _ in family.tower(model).named_modules() if name.rpartition(".")[2] in names
    ]
    prefix = next(n for n, m in model.named_modules() if m is family.tower(model))
    made = peft.LoraConfig(
        r=4, lora_alpha=16, init_lora_weights=False,
        target_modules=[f"{prefix}.{name}" for name in modules], **more,
    )  # fmt: skip
    return peft.get_peft_model(model, made).to(next(model.parameters()).dtype).eval()


def kept(handle):
    return [selection.indices for selection in handle.selections]


@over_transformers
@pytest.mark.parametrize("targets", [LORA, REST], ids=["scored", "rest"])
def test_lora_put_on_after_apply(family, targets):
    model = family.model()
    arguments = family.inputs(model, [1, 2])
    before = forward(model, arguments).logits
    handle = hiprune.apply(model, family.config(family.third))
    unadapted = forward(model, arguments).logits
    adapted = lora(family, model, targets)
    found, chosen = forward(adapted, arguments).logits, kept(handle)
    assert not torch.allclose(found, unadapted)
    handle.remove()
    assert not torch.allclose(forward(adapted, arguments).logits, before)

    again = hiprune.apply(model, family.config(family.third))
    close(found, forward(adapted, arguments).logits, exact=True)
    close(chosen, kept(again), exact=True)
    again.remove()
    check_rows(family, model, arguments, [1, 2], found)


@over_transformers
def test_lora_merged_and_taken_off_while_applied(family):
    model = family.model()
    plain = copy.deepcopy(model)
    arguments = family.inputs(model, [1, 2])
    with hiprune.prune(plain, family.config(family.third)):
        unadapted = forward(plain, arguments).logits
    handle = hiprune.apply(model, family.config(family.third))
    adapted = lora(family, model, LORA)
    expected = forward(adapted, arguments).logits
    adapted.merge_adapter()
    close(forward(adapted, arguments).logits, expected)
    adapted.unmerge_adapter()
    close(forward(adapted, arguments).logits, expected)
    with adapted.disable_adapter():
        close(forward(adapted, arguments).logits, unadapted)
    merged = adapted.merge_and_unload()
    assert merged is model
    close(forward(merged, arguments).logits, expected)
    handle.remove()
    check_rows(family, model, arguments, [1, 2], expected)
    assert forward(merged, arguments).logits.shape[1] == arguments["input_ids"].shape[1]


@over_transformers
def test_lora_unloaded_while_applied(family):
    model = family.model()
    arguments = family.inputs(model, [1, 2])
    handle = hiprune.apply(model, family.config(family.third))
    expected, chosen = forward(model, arguments).logits, kept(handle)
    adapted = lora(family, model, LORA)
    forward(adapted, arguments)
    assert adapted.unload() is model
    close(forward(model, arguments).logits, expected, exact=True)
    close(kept(handle), chosen)
    handle.remove()


@over_transformers
def test_a_lora_that_was_there_before_apply_is_merged(family):
    model = family.model()
    arguments = family.inputs(model, [1, 2])
    adapted = lora(family, model, LORA)
    handle = hiprune.apply(model, family.config(family.third))
    expected = forward(adapted, arguments).logits
    merged = adapted.merge_and_unload()
    close(forward(merged, arguments).logits, expected)
    handle.remove()
    assert forward(merged, arguments).logits.shape[1] == arguments["input_ids"].shape[1]


@over_transformers
def test_lora_of_the_tower_learns(family):
    """Through scored layers and the one that runs for kept tokens alone."""
    model = family.model()
    arguments, labels = with_labels(family, model)
    adapted = lora(family, model, BOTH)
    with hiprune.prune(model, family.config(family.third)):
        found = gradients(adapted, arguments, labels)
    # What runs in no layer beyond the output layer gets none, unpatched as well.
    beyond = f"layers.{len(family.layers(model)) - 1}." if family.output == -2 else "none"
    wanted = [n for n, p in adapted.named_parameters() if p.requires_grad and beyond not in n]
    assert wanted
    silent = [n for n in wanted if n not in found or not found[n].abs().sum() > 0]
    assert not silent
