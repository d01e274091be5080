"""The simpler methods and the paper's ablations: what they keep, whatever the model."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest
import torch

import hiprune
from hiprune import HiPruneConfig, HiPruneError, select_tokens
from hiprune.methods import METHODS, NEEDS, Images, method_of
from hiprune.neighbours import SHAPES, neighbours

COLUMNS, ROWS = 6, 5
TOKENS = COLUMNS * ROWS


def scores(seed=0, batch=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, batch, TOKENS, generator=generator).unbind()


def neighbours_by_hand(anchor, shape, neighborhood):
    """One anchor's, from the definition: rows and columns, or the released code's flat index."""
    found = set()
    for down, right in SHAPES[shape]:
        if neighborhood == "flat":
            found.add(min(max(anchor + down * COLUMNS + right, 0), TOKENS - 1))
            continue
        row, column = anchor // COLUMNS + down, anchor % COLUMNS + right
        if 0 <= row < ROWS and 0 <= column < COLUMNS:
            found.add(row * COLUMNS + column)
    return found - {anchor}


@pytest.mark.parametrize("neighborhood", ["flat", "grid"])
@pytest.mark.parametrize("shape", SHAPES)
def test_neighbours(shape, neighborhood):
    anchors = torch.arange(TOKENS).unsqueeze(1)  # every token of the grid, edges and corners too
    found = neighbours(anchors, TOKENS, COLUMNS, shape, neighborhood)
    assert found.shape == (TOKENS, len(SHAPES[shape]))
    for anchor in range(TOKENS):
        by_hand = neighbours_by_hand(anchor, shape, neighborhood)
        assert set(found[anchor].tolist()) - {anchor} == by_hand


def choose(method, budget, object_scores, output_scores):
    return method(
        Images.like(output_scores, COLUMNS, budget),
        object_scores=object_scores,
        output_scores=output_scores,
        cls_attention=output_scores.unsqueeze(1),
    )


def chosen_by(budget=10, scores_seed=0, **fields):
    method = method_of(HiPruneConfig(budget, **fields))
    return method, choose(method, budget, *scores(scores_seed))


@pytest.mark.parametrize("neighborhood", ["flat", "grid"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("budget", [1, 7, 12, TOKENS])
def test_selection_with_a_buffer_shape(shape, neighborhood, budget):
    object_scores, output_scores = scores()
    chosen = select_tokens(
        object_scores, output_scores, columns=COLUMNS, budget=budget, alpha=0.8,
        buffer=shape, neighborhood=neighborhood,
    )  # fmt: skip
    for row in range(3):
        ranked = object_scores[row].argsort(descending=True).tolist()
        anchors = ranked[: round(0.8 * budget / 5)]
        near = {n for a in anchors for n in neighbours_by_hand(a, shape, neighborhood)}
        near = [token for token in ranked if token in near - set(anchors)]
        left = [t for t in output_scores[row].argsort(descending=True).tolist()
                if t not in anchors and t not in near]  # fmt: skip
        expected = [*anchors, *near, *left][:budget]
        assert chosen.indices[row].tolist() == sorted(expected)
        assert set(chosen.anchor[row].nonzero().flatten().tolist()) == set(anchors)


@pytest.mark.parametrize("neighborhood", ["flat", "grid"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("budget", [1, 2, 7, 12, 29, TOKENS])
def test_without_registers_anchors_come_one_after_the_other(shape, neighborhood, budget):
    object_scores, _ = scores(seed=budget)
    _, chosen = chosen_by(
        budget, budget, alpha=0.0, buffer=shape, neighborhood=neighborhood, registers=False
    )
    assert not chosen.register.any()
    assert (chosen.keep.sum(dim=1) == budget).all()
    for row in range(3):
        ranked = object_scores[row].argsort(descending=True).tolist()
        kept: list[int] = []
        for anchor in ranked:
            near = neighbours_by_hand(anchor, shape, neighborhood)
            kept += [anchor] if anchor not in kept else []
            kept += [token for token in ranked if token in near and token not in kept]
            if len(kept) >= budget:
                break
        assert chosen.indices[row].tolist() == sorted(kept[:budget])
        both = chosen.anchor[row] ^ chosen.buffer[row]
        assert torch.equal(both, chosen.keep[row])
        assert chosen.anchor[row, ranked[0]]


def test_without_buffers_and_registers_the_most_attended_stay():
    _, chosen = chosen_by(9, buffer="none", registers=False)
    top = scores()[0].topk(9, dim=1).indices.sort(dim=1).values
    assert torch.equal(chosen.indices, top)
    assert torch.equal(chosen.anchor, chosen.keep)


def test_an_unknown_shape_is_named():
    for name, value in (("buffer", "circle"), ("neighborhood", "torus")):
        with pytest.raises(HiPruneError, match=f"^{name}={value!r}: expected one of"):
            select_tokens(*scores(), columns=COLUMNS, budget=9, alpha=0.1, **{name: value})


def test_the_registry():
    assert hiprune.methods() == tuple(METHODS)
    assert next(iter(METHODS)) == "hiprune"
    simple = {"random", "uniform", "cls"}
    assert set(METHODS) > simple | {"hiprune_pp", "vispruner", "scope", "divprune", "visionzip"}
    for name, method in METHODS.items():
        assert method.name == name
        assert set(method.needs) <= set(NEEDS)
        assert HiPruneConfig(method=name).needs == method.needs
        # Settings are fields of the configuration, or the method's own.
        assert set(method.shared) <= {field.name for field in fields(HiPruneConfig)}
        assert {field.name for field in fields(method)} == {*method.shared, *method.own()}
    assert HiPruneConfig().needs == ("object_scores", "output_scores")
    assert HiPruneConfig(method="uniform").needs == HiPruneConfig(method="random").needs == ()


@pytest.mark.parametrize("name", ["hiprune", "random", "uniform", "cls"])
@pytest.mark.parametrize("budget", [1, 10, TOKENS, TOKENS + 5])
def test_a_method_sees_what_it_needs_alone_and_keeps_its_budget(name, budget):
    method = method_of(HiPruneConfig(method=name))
    object_scores, output_scores = scores()
    given = {
        "object_scores": object_scores,
        "output_scores": output_scores,
        "cls_attention": torch.stack([output_scores, object_scores], dim=1),
    }
    images = Images.like(output_scores, COLUMNS, budget)
    found = method(images, **{need: given[need] for need in method.needs})
    assert found.keep.shape == (3, TOKENS)
    assert found.indices.shape == (3, min(budget, TOKENS))
    for need in method.needs:
        without = {other: given[other] for other in given if other != need}
        with pytest.raises(HiPruneError, match=f"^{need}=None: method '{name}' expected"):
            method(images, **without)


def test_random_is_seeded_and_drawn_anew_for_every_image():
    method, first = chosen_by(method="random", seed=1)
    second = choose(method, 10, *scores())
    _, again = chosen_by(method="random", seed=1)
    _, other = chosen_by(method="random", seed=2)
    assert torch.equal(first.indices, again.indices)
    assert not torch.equal(first.indices, other.indices)
    assert not torch.equal(first.indices, second.indices)
    assert not torch.equal(first.indices[0], first.indices[1])
    assert (first.keep.sum(dim=1) == 10).all()


def test_random_keeps_every_place_about_as_often():
    many = torch.zeros(3000, TOKENS)
    share = choose(random(), 10, many, many).keep.float().mean(dim=0)
    assert (share - 1 / 3).abs().max() < 0.05  # 5.8 standard errors of 0.0086


def random(seed=0):
    return method_of(HiPruneConfig(10, method="random", seed=seed))


def draws(method, times):
    return [tuple(choose(method, 10, *scores(batch=1)).indices[0].tolist()) for _ in range(times)]


def test_threads_draw_what_one_after_the_other_draws(monkeypatch):
    """The first calls of all meet where there is no generator yet."""
    expected = sorted(draws(random(3), 40))
    method, start, generator = random(3), threading.Barrier(8), torch.Generator

    def slowly(*device):
        time.sleep(0.02)
        return generator(*device)

    def work(_):
        start.wait()
        return draws(method, 5)

    monkeypatch.setattr(torch, "Generator", slowly)
    with ThreadPoolExecutor(8) as pool:
        found = [one for several in pool.map(work, range(8)) for one in several]
    assert sorted(found) == expected


@pytest.mark.parametrize("how", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_random_goes_on_by_itself(how):
    method = random(5)
    draws(method, 3)
    other = how(method)
    following = draws(method, 4)
    assert draws(other, 4) == following
    assert draws(method, 1) != following[:1]


@pytest.mark.parametrize("budget", [1, 3, 7, 10, 29, 30, 31])
def test_uniform_is_evenly_spaced(budget):
    _, chosen = chosen_by(budget, method="uniform")
    places = chosen.indices[0].double()
    assert len(places) == min(budget, TOKENS)
    ideal = (torch.arange(len(places)) + 0.5) * TOKENS / len(places)
    assert ((ideal - places).abs() < 1).all()
    assert torch.equal(chosen.indices, chosen.indices[:1].expand(3, -1))


def test_cls_keeps_the_most_attended_of_the_output_layer():
    _, chosen = chosen_by(method="cls")
    top = scores()[1].topk(10, dim=1).indices.sort(dim=1).values
    assert torch.equal(chosen.indices, top)
    assert torch.equal(chosen.register, chosen.keep)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "best"}, "method='best': expected one of 'hiprune', 'hiprune_pp', 'random'"),
        ({"score": "CLS"}, "score='CLS': expected one of 'global', 'cls'"),
        ({"buffer": None}, "buffer=None: expected one of 'cross', 'square'"),
        ({"neighborhood": "torus"}, "neighborhood='torus': expected one of 'flat', 'grid'"),
        ({"registers": "no"}, "registers='no': expected one of True, False"),
        ({"registers": 1}, "registers=1: expected one of True, False"),
        ({"seed": -1}, "seed=-1: expected an integer from 0"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"method": "random", "buffer": "row"}, "buffer='row' with method='random': expected"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(HiPruneError, match=message):
        HiPruneConfig(**fields)


def test_the_variables():
    environ = {
        "HIPRUNE_SCORE": "cls",
        "HIPRUNE_BUFFER": "square",
        "HIPRUNE_NEIGHBORHOOD": "grid",
        "HIPRUNE_REGISTERS": "0",
    }
    config = HiPruneConfig.from_env("llava", environ)
    expected = {"score": "cls", "buffer": "square", "neighborhood": "grid", "registers": False}
    assert config.variant() == expected
    assert config.uses_cls
    environ = {"HIPRUNE_METHOD": "random", "HIPRUNE_SEED": "3"}
    config = HiPruneConfig.from_env("qwen2_5_vl", environ)
    assert (config.method, config.seed) == ("random", 3)
    assert config.variant() == {"method": "random", "seed": 3}
    assert HiPruneConfig.from_env("llava", {}).variant() == {}


def test_variables_that_exclude_each_other_are_named():
    environ = {"HIPRUNE_METHOD": "cls", "HIPRUNE_BUFFER": "row"}
    with pytest.raises(HiPruneError, match=r"^HIPRUNE_BUFFER='row' with HIPRUNE_METHOD='cls'"):
        HiPruneConfig.from_env("llava", environ)


def test_variables_and_configuration_are_two_spellings_of_one():
    for changed in ({"method": "random", "seed": 3}, {"registers": False, "alpha": 0.3}):
        config = HiPruneConfig(64, object_layer=5, **changed)
        environ = config.variables("llava")
        assert HiPruneConfig.from_env("llava", environ) == config


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("HIPRUNE_METHOD", "", "one of hiprune, hiprune_pp, random, uniform, cls"),
        ("HIPRUNE_SCORE", "Global", "one of global, cls"),
        ("HIPRUNE_BUFFER", "circle", "one of cross, square, diagonal, row, column, none"),
        ("HIPRUNE_NEIGHBORHOOD", "1", "one of flat, grid"),
        ("HIPRUNE_REGISTERS", "False", "one of 1, 0"),
        ("HIPRUNE_SEED", "-1", "an integer from 0 to"),
        ("HIPRUNE_SEED", "1_0", "an integer from 0 to"),
    ],
)
def test_bad_variables_are_named(name, text, expected):
    with pytest.raises(HiPruneError, match=f"^{name}={text!r}: expected {expected}"):
        HiPruneConfig.from_env("llava", {name: text})
