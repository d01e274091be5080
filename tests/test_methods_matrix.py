"""Every method on every family: what it keeps, and that it is handed what it needs alone."""

from __future__ import annotations

import pytest
import torch
from family import PACKAGE, Family, close_where_real, forward
from matrix import FAMILIES, over_families

import hiprune
from hiprune import HiPruneConfig, HiPruneError, choose_tokens, scores
from hiprune.methods import METHODS, OF_TEXT, WITH_CLS

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = [name for name, method in METHODS.items() if not OF_TEXT.isdisjoint(method.needs)]


def runs(family: Family, method: str) -> bool:
    if family.looked is None:
        return method in ("hiprune", "random", "uniform")
    return not family.mrope or WITH_CLS.isdisjoint(METHODS[method].needs)


def pairs(*left_out):
    found = [(family, name) for family in FAMILIES.values() for name in METHODS]
    found = [(f, n) for f, n in found if runs(f, n) and n not in left_out]
    return pytest.mark.parametrize(("family", "method"), found, ids=lambda x: getattr(x, "name", x))


def config(family, retention, method):
    return HiPruneConfig(retention, alpha=0.5, object_layer=family.object_layer, method=method)


def by_hand(method, needs, views, columns, total):
    """What choose_tokens keeps of an image: the views' grid tokens, and how many are merged."""
    alpha = {"alpha": 0.5} if "alpha" in METHODS[method].shared else {}
    return choose_tokens(method, budget=total // views, columns=columns, **needs, **alpha)


@pairs("random", *TEXT)
def test_what_is_kept_is_what_choose_tokens_keeps_by_hand(family, method):
    if family.looked is None:
        pytest.skip("by hand in the matrix")
    model = family.model()
    arguments = family.inputs(model, [1, 2])
    looked = family.looked(model, arguments)
    settings = config(family, family.third, method)
    with hiprune.prune(model, settings) as pruned:
        features = pruned.encode_images(*family.images(arguments))
        selections = pruned.selections
        short = forward(model, arguments)
        assert all(
            torch.equal(again.indices, first.indices)
            for again, first in zip(pruned.selections, selections, strict=True)
        )
    assert len(selections) == len(features) == len(looked) == 3
    width = family.inputs(model, [1, 2])["input_ids"].shape[1]
    assert short.logits.shape[1] != width
    for image, selection, (views, columns, needs) in zip(features, selections, looked, strict=True):
        total = settings.budget(views * needs["projected"].shape[1])
        expected = by_hand(method, needs, views, columns, total)
        assert torch.equal(selection.indices, expected.indices)
        kept = needs["projected"].gather(
            1, expected.indices.unsqueeze(-1).expand(-1, -1, needs["projected"].shape[-1])
        )
        assert len(image) == total // views * views  # N' of each image, to the token
        if expected.merged is None:
            # In whatever order the views' tokens come: test_llava_hf and test_llava say which.
            found, kept = image.sort(dim=0).values, kept.flatten(0, 1).sort(dim=0).values
            torch.testing.assert_close(found, kept, rtol=1e-4, atol=1e-4)
            continue
        torch.testing.assert_close(selection.merged, expected.merged, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            merged = family.projector(model)(expected.merged.to(kept))
        torch.testing.assert_close(image[: kept.shape[1]], kept[0], rtol=1e-4, atol=1e-4)
        base = image[kept.shape[1] :][: merged.shape[1]]
        torch.testing.assert_close(base, merged[0], rtol=1e-4, atol=1e-4)
        last = image[len(image) - merged.shape[1] :]
        torch.testing.assert_close(last, merged[-1], rtol=1e-4, atol=1e-4)


@pairs("visionzip", *TEXT)
def test_a_full_budget_changes_nothing(family, method):
    model = family.model()
    arguments = family.inputs(model, [1, 2, 0])
    plain, whole = family.plain(model, arguments)
    expected = forward(plain, whole).logits
    with hiprune.prune(model, config(family, family.full, method)):
        close_where_real(forward(model, arguments).logits, expected, whole)


@pairs(*TEXT)
def test_generation_goes_on(family, method):
    model = family.model()
    arguments = family.inputs(model, [1, 0])
    with hiprune.prune(model, config(family, family.third, method)) as pruned:
        answer = family.answer(model, arguments)
        assert len(answer) == 2
        looked_at = [s.merged is not None for s in pruned.selections]
    assert all(looked_at) == (method == "visionzip")


@over_families
@pytest.mark.parametrize("method", ["random", "uniform"])
def test_where_no_score_is_needed_none_is_computed(family, method, monkeypatch):
    model, calls, sums = family.model(), [], scores._column_sums
    arguments = family.inputs(model, [1, 2])

    def counted(*args):
        calls.append(args)
        return sums(*args)

    monkeypatch.setattr(scores, "_column_sums", counted)

    def attention_hooks():
        attentions = [getattr(layer, family.attention) for layer in family.layers(model)]
        return sum(len(module._forward_hooks) for a in attentions for module in a.modules())

    before = attention_hooks()
    with hiprune.prune(model, config(family, family.third, method)) as pruned:
        assert attention_hooks() == before
        forward(model, arguments)
        kept = [selection.indices for selection in pruned.selections]
        assert not calls
    with hiprune.prune(model, config(family, family.third, "hiprune")):
        assert attention_hooks() > before
        forward(model, arguments)
        assert calls
    # The tokens are those that the methods choose of as many images of this size.
    sizes = [(selection.keep.shape, selection.indices.shape[1]) for selection in pruned.selections]
    together = len({size for size in sizes}) == 1 and sizes[0][0][0] == 1 and family.name == "llava"
    if method == "uniform":
        expected = [torch.arange(n) for (_, _), n in sizes]
        expected = [
            ((2 * each + 1) * tokens // (2 * len(each))).expand(views, -1)
            for each, ((views, tokens), _) in zip(expected, sizes, strict=True)
        ]
    else:
        generator, shape = torch.Generator().manual_seed(0), sizes[0][0]
        if together:  # the images of a batch are drawn at once
            draws = torch.rand(len(sizes), shape[1], generator=generator).split(1)
        else:
            draws = [torch.rand(size, generator=generator) for size, _ in sizes]
        expected = [
            draw.topk(n, dim=1).indices.sort(dim=1).values
            for draw, (_, n) in zip(draws, sizes, strict=True)
        ]
    for found, right in zip(kept, expected, strict=True):
        assert torch.equal(found, right)


@pytest.mark.skipif(PACKAGE, reason="Qwen is of transformers")
@pytest.mark.parametrize("method", [n for n, m in METHODS.items() if WITH_CLS & set(m.needs)])
def test_what_a_tower_cannot_give_is_refused_by_name(method):
    family = FAMILIES["qwen2_5_vl"]
    with pytest.raises(HiPruneError, match=f"^method='{method}': this model's vision tower has no"):
        hiprune.apply(family.model(), config(family, 0.3, method))
