"""choose_tokens: what the released codes keep, index for index; the exact count whatever the input.

tests/data/methods.npz holds synthetic inputs and, of each method, what its authors' code kept for
them in float32: Theia-4869/VisPruner@aefa01a (where it raises, with one line changed),
vbdi/divprune@799e2d9, kinredon/SCOPE@6bf7306, dvlab-research/VisionZip@3151f6d and
Theia-4869/CDPruner@9541616.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hiprune import HiPruneError, choose_tokens, select_tokens
from hiprune.methods import METHODS
from hiprune.methods.cdpruner import relevance

DATA = np.load(Path(__file__).parent / "data" / "methods.npz")
CASES = json.loads(str(DATA["cases"]))
PROJECTED = ("divprune", "cdpruner")
SETTINGS = ("alpha", "important_ratio", "dominant", "contextual")


def inputs_of(case):
    start, found = f"{case['method']}.in.{case['input']}.", {}
    for name in DATA.files:
        if name.startswith(start):
            value = torch.from_numpy(DATA[name].astype(np.float32))
            if case["method"] == "divprune":
                value = value[None]
            found[name.removeprefix(start)] = value
    if case["method"] in PROJECTED:
        found["projected"] = found.pop("features")
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['method']}-{case['id']}")
def test_what_the_released_code_keeps(case):
    def kept(name):
        return DATA[f"{case['method']}.out.{case['id']}.{name}"]

    inputs = inputs_of(case)
    settings = {name: case[name] for name in SETTINGS if name in case}
    found = choose_tokens(case["method"], budget=case["budget"], columns=12, **inputs, **settings)
    merged = 0 if found.merged is None else found.merged.shape[1]
    assert found.indices.shape[1] + merged == case["budget"]
    assert (found.keep.sum(dim=1) == found.indices.shape[1]).all()
    if case["method"] == "visionzip":
        assert np.array_equal(found.indices, kept("dominant"))
        np.testing.assert_allclose(found.merged[:, 1:], kept("contextual"), rtol=1e-4, atol=1e-4)
        assert torch.equal(found.merged[:, 0], inputs["hidden"][:, 0])  # CLS
    elif case.get("repeats"):  # the release keeps tokens twice; the rest is ours to choose
        assert set(kept("kept").tolist()) < set(found.indices[0].tolist())
    else:
        assert np.array_equal(found.indices, kept("kept").reshape(found.indices.shape))
    if case["method"] == "cdpruner":
        ours = relevance(inputs["image_embeds"], inputs["text_embeds"])
        np.testing.assert_allclose(ours, kept("relevance"), rtol=1e-4, atol=1e-4)


def test_visionzip_shares_budgets_out_as_the_release():
    cases = [
        c for c in CASES if c["method"] == "visionzip" and c["budget"] in (192, 64, 48, 32, 16)
    ]
    assert len(cases) >= 5
    for case in cases:
        found = choose_tokens("visionzip", budget=case["budget"], columns=12, **inputs_of(case))
        assert found.indices.shape[1] == case["dominant"] - 1
        assert found.merged.shape[1] == 1 + case["contextual"]


TOKENS, COLUMNS = 20, 5


def given(kind, batch=2):
    """Everything a method can need, of B images of 20 tokens: random, or what goes wrong."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    found = {
        "object_scores": draw(batch, TOKENS).abs(),
        "output_scores": draw(batch, TOKENS).abs(),
        "cls_attention": draw(batch, 3, TOKENS).softmax(dim=-1),
        "keys": draw(batch, 3, 1 + TOKENS, 4),
        "hidden": draw(batch, 1 + TOKENS, 8),
        "features": draw(batch, TOKENS, 8),
        "projected": draw(batch, TOKENS, 6),
        "image_embeds": draw(batch, TOKENS, 5),
        "text_embeds": draw(1, 5),
    }
    if kind == "equal":
        found = {name: torch.ones_like(value) for name, value in found.items()}
    elif kind == "zero":
        found = {name: torch.zeros_like(value) for name, value in found.items()}
    elif kind == "NaN":
        for name, value in found.items():
            if name != "text_embeds":
                value[:, ..., 3:6] = float("nan")
    elif kind == "all NaN":
        found = {name: torch.full_like(value, float("nan")) for name, value in found.items()}
    elif kind == "few differ":
        for name in ("features", "projected", "image_embeds", "hidden"):
            found[name] = found[name][:, :1].repeat(1, found[name].shape[1], 1)
            found[name][:, 0] += 1
    elif kind == "half":
        found = {name: value.half() for name, value in found.items()}
    return found


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "kind", ["random", "equal", "zero", "NaN", "all NaN", "few differ", "half"]
)
def test_exactly_the_budget_whatever_is_given(name, kind):
    for budget in range(1, TOKENS + 3):
        found = choose_tokens(name, budget=budget, columns=COLUMNS, **given(kind))
        merged = 0 if found.merged is None else found.merged.shape[1]
        assert found.indices.shape == (2, min(budget, TOKENS + (merged > 0)) - merged)
        assert (found.keep.sum(dim=1) == found.indices.shape[1]).all()
        rebuilt = torch.zeros_like(found.keep).scatter(1, found.indices, True)
        assert torch.equal(rebuilt, found.keep)
        assert (found.indices.diff(dim=1) > 0).all()
        assert torch.equal(found.keep, found.anchor | found.buffer | found.register)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("random", "cdpruner")])
def test_an_image_keeps_the_same_tokens_whatever_stands_beside_it(name):
    inputs = given("random", batch=3)
    together = choose_tokens(name, budget=9, columns=COLUMNS, **inputs)
    for row in range(3):
        own = {n: x if n == "text_embeds" else x[row : row + 1] for n, x in inputs.items()}
        alone = choose_tokens(name, budget=9, columns=COLUMNS, **own)
        assert torch.equal(together.indices[row : row + 1], alone.indices)
        if alone.merged is not None:
            torch.testing.assert_close(together.merged[row : row + 1], alone.merged)


def covering(features, cls_attention, budget, alpha):
    """SCOPE as it is written down, one image, each step from the start, in float64."""
    x = torch.nn.functional.normalize(features.double(), dim=1)
    similarity, salience = x @ x.T, cls_attention.double().sum(dim=0) ** alpha
    chosen = []
    for _ in range(budget):
        covered = similarity[:, chosen].amax(dim=1).clamp(min=0) if chosen else torch.zeros(len(x))
        scores = (similarity - covered[:, None]).clamp(min=0).sum(dim=0) * salience
        scores[chosen] = float("-inf")
        chosen.append(int(scores.argmax()))
    return sorted(chosen)


# Not alpha 0: two tokens that cover each other alone then add the same, and rounding decides.
@pytest.mark.parametrize("alpha", [0.5, 1, 2])
@pytest.mark.parametrize("spread", [0.2, 1, 5])  # from all alike to all apart
def test_scope_looks_again_at_all_that_can_be_chosen(alpha, spread):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, 1, 16, generator=generator)
    features = features + spread * torch.randn(2, 150, 16, generator=generator)
    attention = torch.randn(2, 3, 150, generator=generator).softmax(dim=2)
    if alpha != 0.5:
        attention[1] *= -1  # that no tower gives: with alpha 1 scores rise
    found = choose_tokens(
        "scope", budget=60, columns=15, features=features, cls_attention=attention, alpha=alpha
    )
    for image in range(2):
        expected = covering(features[image], attention[image], 60, alpha)
        assert found.indices[image].tolist() == expected


def test_cdpruner_has_one_scale_of_relevance_for_a_batch():
    """The release's: one scale an image would not keep what it keeps of this case's two views."""
    (case,) = (c for c in CASES if c["method"] == "cdpruner" and c["input"] == "n144_batch")
    inputs = inputs_of(case)
    alone = [
        choose_tokens(
            "cdpruner",
            budget=case["budget"],
            columns=12,
            **{n: x if n == "text_embeds" else x[view : view + 1] for n, x in inputs.items()},
        )
        for view in range(2)
    ]
    together = choose_tokens("cdpruner", budget=case["budget"], columns=12, **inputs)
    assert not torch.equal(torch.cat([each.indices for each in alone]), together.indices)
    assert "one by one" in choose_tokens.__doc__


@pytest.mark.parametrize("sign", ["+", "-"])
@pytest.mark.parametrize("where", ["inside", "beside"])
@pytest.mark.parametrize("count", ["share", "fifth"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_hiprune_pp_by_hand(beta, count, where, sign):
    inputs, budget = given("random"), 10
    text = round(beta * budget / (5 if count == "fifth" else 1))
    found = choose_tokens(
        "hiprune_pp", budget=budget, columns=COLUMNS, **inputs,
        alpha=0.5, beta=beta, count=count, text_budget=where, sign=sign,
    )  # fmt: skip
    first = budget - text if where == "inside" else budget
    for row in range(2):
        chosen = set()
        if first:
            own = (inputs[n][row : row + 1] for n in ("object_scores", "output_scores"))
            ours = select_tokens(*own, columns=COLUMNS, budget=first, alpha=0.5)
            chosen = set(ours.indices[0].tolist())
        cosine = torch.cosine_similarity(inputs["image_embeds"][row], inputs["text_embeds"], dim=1)
        ranked = cosine.argsort(descending=sign == "+").tolist()
        added = [token for token in ranked if token not in chosen][:text]
        assert found.indices[row].tolist() == sorted([*chosen, *added])


def test_text_is_compared_with_the_mean_of_its_segments_and_with_projected_tokens():
    inputs = given("random")
    inputs["text_embeds"] = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    found = choose_tokens("hiprune_pp", budget=10, columns=COLUMNS, **inputs, beta=0.5)
    mean = inputs["text_embeds"].mean(dim=0, keepdim=True)
    again = inputs | {"text_embeds": mean}
    again["projected"] = again.pop("image_embeds")  # of a model without a text encoder
    again = choose_tokens("hiprune_pp", budget=10, columns=COLUMNS, **again, beta=0.5)
    assert torch.equal(found.indices, again.indices)


def test_merged_tokens_have_gradients_and_choices_none():
    inputs = given("random")
    inputs["hidden"].requires_grad_()
    found = choose_tokens("visionzip", budget=9, columns=COLUMNS, **inputs)
    found.merged.sum().backward()
    assert (inputs["hidden"].grad != 0).any(dim=2).sum() == 2 * (1 + TOKENS - 7)
    inputs = {name: value.requires_grad_() for name, value in given("random").items()}
    for name in METHODS:
        assert not choose_tokens(name, budget=9, columns=COLUMNS, **inputs).indices.requires_grad


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("best", {}, "name='best': expected one of hiprune, hiprune_pp"),
        ("scope", {"budget": 0}, "budget=0: expected an integer of at least 1"),
        ("scope", {"columns": 2.5}, "columns=2.5: expected"),
        ("scope", {"features": None}, r"features=None: method 'scope' expected \(B, N, C\)"),
        ("scope", {"features": torch.ones(20, 8)}, r"features: \(20, 8\); expected \(B, N, C\)"),
        ("scope", {"features": torch.ones(2, 19, 8)}, r"features: \(2, 19, 8\);.*N = 20"),
        ("visionzip", {"hidden": torch.ones(2, 20, 8)}, r"hidden: .*\(B, 1\+N, C\).* N = 20"),
        ("cdpruner", {"text_embeds": torch.ones(1, 4)}, r"text_embeds: \(1, 4\).*E = 5"),
        ("uniform", {"beta": 0.1}, "beta=0.1: no setting of method 'uniform'; expected none"),
        ("scope", {"alpha": -1}, "alpha=-1 of method 'scope': expected a number from 0 to"),
        ("vispruner", {"important_ratio": 2}, "important_ratio=2 of method 'vispruner': expected"),
        ("visionzip", {"contextual": 9}, "contextual=9 with a budget of 9 tokens: expected"),
        ("visionzip", {"dominant": 5, "contextual": 5}, "dominant=5, contextual=5 with a budget"),
        ("visionzip", {"contextual": 1.5}, "contextual=1.5 of method 'visionzip': expected an int"),
        ("hiprune_pp", {"sign": "*"}, r"sign='\*' of method 'hiprune_pp': expected one of '\+'"),
        ("hiprune_pp", {"image_embeds": None, "projected": None}, "image_embeds=None: method"),
        ("visionzip", {"dominant": 10}, "dominant=10, contextual=0 with a budget of 9 tokens: exp"),
        ("hiprune", {"score": "all"}, "score='all' of method 'hiprune': expected one of 'global'"),
        ("hiprune", {"buffer": "ring"}, "buffer='ring' of method 'hiprune': expected one of 'cro"),
        (
            "hiprune",
            {"neighborhood": []},
            r"neighborhood=\[\] of method 'hiprune': expected one of",
        ),
        ("hiprune_pp", {"registers": "no"}, "registers='no' of method 'hiprune_pp': expected True"),
        ("hiprune", {"alpha": "0.1"}, "alpha='0.1' of method 'hiprune': expected a number from 0"),
        ("random", {"seed": "7"}, "seed='7' of method 'random': expected an integer from 0"),
        ("random", {"seed": -1}, "seed=-1 of method 'random': expected an integer from 0"),
        ("cls", {"cls_attention": np.ones((2, 3, 20))}, r"cls_attention: ndarray, no tensor; exp"),
        ("divprune", {"project": torch.ones(2, 20, 6)}, "project=Tensor: no setting of method"),
    ],
)
def test_bad_input_is_named(name, change, message):
    arguments = {"budget": 9, "columns": COLUMNS, **given("random"), **change}
    with pytest.raises(HiPruneError, match=f"^.*{message}"):
        choose_tokens(name, **arguments)


def test_numbers_of_numpy_are_settings_and_integers_scores():
    def kept(name, **more):
        return choose_tokens(name, budget=9, columns=COLUMNS, **given("random") | more).indices

    assert torch.equal(kept("random", seed=np.int64(3)), kept("random", seed=3))
    assert torch.equal(kept("scope", alpha=np.float32(0.5)), kept("scope", alpha=0.5))
    whole = torch.arange(2 * 3 * TOKENS).view(2, 3, TOKENS) % 7
    assert torch.equal(kept("cls", cls_attention=whole), kept("cls", cls_attention=whole.double()))


def test_the_mean_over_heads_is_not_made_in_half_precision():
    """1 and 1 + 2^-10 are neighbours in float16: their mean with 1 is a tie there."""
    scores = torch.ones(1, 4, 3, dtype=torch.float16)
    scores[0, 0, 2] += 2**-10
    found = choose_tokens("cls", budget=1, columns=3, cls_attention=scores)
    assert found.indices.tolist() == [[2]]


def test_a_method_that_looks_at_nothing_needs_to_be_told_how_many_tokens_there_are():
    with pytest.raises(HiPruneError, match="'uniform' without an input: expected"):
        choose_tokens("uniform", budget=9, columns=COLUMNS)
    assert choose_tokens("uniform", budget=9, columns=COLUMNS, keys=torch.ones(2, 3, 21, 4))
