"""Ranks, distances and IoU: by hand, and beside slow oracles in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hiprune import HiPruneError
from hiprune.figures.analysis import (
    centre_prior,
    coverage,
    dispersion,
    iou,
    ranks,
    token_distance,
    top_tokens,
)

NAN = math.nan


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.4, 0.2], [0, 1, 0.5]),
        ([5.0, 5.0, 5.0], [1, 0.5, 0]),  # ties: the lower index wins
        ([NAN, 1.0, -1.0, NAN, 1.0], [0.25, 1, 0.5, 0, 0.75]),
        ([3.0], [1]),
    ],
)
def test_ranks_by_hand(scores, expected):
    assert ranks(torch.tensor(scores)).tolist() == expected


def test_ranks_of_each_layer_are_its_own():
    scores = noise(4, 3, 20)
    found = ranks(scores)
    for layer, image in itertools.product(range(4), range(3)):
        below = (scores[layer, image][None, :] < scores[layer, image][:, None]).sum(dim=1)
        assert torch.equal(found[layer, image], below / 19)


def test_scores_that_differ_beyond_their_own_precision_are_told_apart():
    """Ranks go by the scores as given: no rounding makes a tie."""
    scores = torch.tensor([1.0, 1.0 + 2**-23], dtype=torch.float64)
    assert ranks(scores).tolist() == [0, 1]


@pytest.mark.parametrize(("share", "count"), [(0.1, 2), (0.25, 5), (0.01, 1), (1, 20), (0.124, 2)])
def test_top_tokens(share, count):
    scores = noise(3, 20)
    found = top_tokens(scores, share)
    assert torch.equal(found, scores.topk(count).indices)


@pytest.mark.parametrize("share", [0, -0.1, 1.1, NAN, True, "0.1", None])
def test_shares_that_are_none(share):
    with pytest.raises(HiPruneError, match=r"share=.*expected a number in \(0, 1\]"):
        top_tokens(noise(20), share)


def test_dispersion_by_hand():
    features = torch.tensor([[0.0, 0], [3, 4], [100, 100], [0, 8]])
    scores = torch.tensor([[9.0, 8, 1, 0], [9, 8, 0, 7], [0, 0, 0, 0]])
    found = dispersion(features, scores[:1], 0.5)
    assert found.tolist() == [5.0]
    found = dispersion(features, scores[1:2], 0.75)  # 0-1: 5, 0-3: 8, 1-3: 5
    assert found.tolist() == [6.0]
    assert dispersion(features, scores[2:], 0.5).tolist() == [5.0]  # all tie: tokens 0 and 1


def test_dispersion_beside_a_loop_over_pairs():
    layers, images, tokens = 3, 2, 17
    features, scores = 1000 + noise(images, tokens, 8, seed=1), noise(layers, images, tokens)
    found = dispersion(features, scores, 0.3)
    assert found.shape == (layers, images)
    assert found.dtype == torch.float64
    for layer, image in itertools.product(range(layers), range(images)):
        best = sorted(range(tokens), key=lambda n: -scores[layer, image, n])[:5]
        points = features[image].double()
        lengths = [
            (points[a] - points[b]).pow(2).sum().sqrt() for a, b in itertools.combinations(best, 2)
        ]
        torch.testing.assert_close(found[layer, image], sum(lengths) / len(lengths))


def test_token_distance_by_hand():
    scores = torch.zeros(3, 12)
    scores[0, [0, 1]] = 1  # neighbours
    scores[1, [0, 11]] = 1  # corners of a grid of 3 x 4
    scores[2, [3, 4]] = 1  # the end of a row and the beginning of the next
    found = token_distance(scores, columns=4, share=1 / 6)
    torch.testing.assert_close(
        found, torch.tensor([1, math.hypot(2, 3), math.hypot(1, 3)], dtype=torch.float64)
    )


def test_dispersion_refuses_what_it_cannot_measure():
    with pytest.raises(HiPruneError, match="at least 2"):
        dispersion(noise(20, 3), noise(20), 0.05)
    with pytest.raises(HiPruneError, match="N = 20"):
        dispersion(noise(21, 3), noise(20), 0.5)
    with pytest.raises(HiPruneError, match="divisor"):
        token_distance(noise(20), 3, 0.5)


def test_coverage_by_hand():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:2, :3] = True
    assert coverage(mask, 2, 2).tolist() == [[1, 0], [0, 0]]
    torch.testing.assert_close(
        coverage(mask, 1, 4), torch.tensor([[0.5, 0.5, 0, 0]], dtype=torch.float64)
    )
    # Tokens of 4/3 x 6/4 pixels
    expected = torch.tensor([[1, 1, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(coverage(mask, 3, 4), expected)


def test_coverage_of_a_padded_and_of_a_cropped_image():
    mask = torch.ones(4, 8, dtype=torch.bool)
    padded = coverage(mask, 4, 2, box=(0, -2, 8, 6))  # a square around it
    assert padded.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
    mask[:, :2] = False
    cropped = coverage(mask, 1, 4, box=(1, 0, 5, 4))
    assert cropped.tolist() == [[0, 1, 1, 1]]


def test_coverage_beside_fine_sampling():
    mask = noise(13, 19) > 0.3
    rows, columns, fine = 5, 7, 13 * 19
    blown = mask.repeat_interleave(5 * 7, 0).repeat_interleave(5 * 7, 1)  # exact: common multiples
    expected = blown.double().reshape(rows, 7 * 13, columns, 5 * 19).mean(dim=(1, 3))
    torch.testing.assert_close(coverage(mask, rows, columns), expected)
    assert abs(float(expected.sum()) / (rows * columns) - int(mask.sum()) / fine) < 1e-12


def test_iou_is_that_of_the_pixels():
    mask, scores = noise(24, 36, seed=3) > 0.5, noise(4, 6 * 6, seed=4)
    covered = coverage(mask, 6, 6)
    found = iou(scores, covered, 0.2)
    assert found.shape == (4,)
    for layer in range(4):
        tokens = torch.zeros(36, dtype=torch.bool)
        tokens[scores[layer].topk(7).indices] = True
        pixels = tokens.view(6, 6).repeat_interleave(4, 0).repeat_interleave(6, 1)
        expected = (pixels & mask).sum().double() / (pixels | mask).sum()
        torch.testing.assert_close(found[layer], expected)


def test_iou_of_a_perfect_and_of_a_hopeless_choice():
    mask = torch.zeros(4, 4)
    mask[1:3, 1:3] = 1
    scores = torch.stack([mask.flatten(), 1 - mask.flatten()])
    assert iou(scores, mask, 0.25).tolist() == [1.0, 0.0]
    assert iou(centre_prior(4, 4), mask, 0.25) == 1.0


def test_iou_refuses():
    with pytest.raises(HiPruneError, match=r"\(3, 4\).*of 16 tokens"):
        iou(noise(16), torch.ones(3, 4), 0.1)
    with pytest.raises(HiPruneError, match="covers no token"):
        iou(noise(16), torch.zeros(4, 4), 0.1)


def test_the_centre_prior_falls_from_the_middle():
    prior = centre_prior(3, 5).view(3, 5)
    assert prior[1, 2] == 0 == prior.max()
    assert torch.equal(prior, prior.flip(0)) and torch.equal(prior, prior.flip(1))
    assert prior[1, 0] == pytest.approx(-0.4)
    assert prior[0, 2] == pytest.approx(-1 / 3)
    assert prior[0, 0] == pytest.approx(-math.hypot(1 / 3, 0.4))
