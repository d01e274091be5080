"""The card that train_tiny.py leaves with a checkpoint: its numbers are those of the run."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from functools import partial

import pytest
import torch

pytest.importorskip("transformers", minversion="5", reason="needs the environment .venv-qwen")

from scripts.tiny import __main__ as train_tiny
from scripts.tiny import export as card
from scripts.tiny import loop
from scripts.tiny.batches import Steps
from scripts.tiny.questions import KINDS

SCENES = 32
# A run of two steps would have all answers wrong.
SCORES = {"existence": 0.75, "colour": 0.5, "shape": 0.25, "count": 1.0, "position": 0.0}


class Measured:
    """In place of the measuring for the card: what it was given, and SCORES."""

    def __init__(self):
        self.images, self.rounded, self.asked = [], None, Counter()

    def __call__(self, trainee, batches, bfloat16):
        for batch in batches:
            self.images += list(batch.images)
            self.asked.update(KINDS[kind] for kind in batch.kinds.flatten().tolist())
        self.rounded = all(torch.equal(w, w.half().float()) for w in trainee.model.parameters())
        return {**SCORES, "mean": 0.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, what was measured) of a run of two steps, interrupted after the first."""
    output = tmp_path_factory.mktemp("run with a space")
    words = ["train_tiny.py", "--family", "llava", "--steps", "2", "--measure-every", "1"]
    words += ["--output", str(output), "--set", "batch=2", "per_kind=1", "tower_steps=1"]
    measured = Measured()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "SCENES", SCENES)
        patch.setattr(card, "measure", measured)
        patch.setattr(loop, "train", partial(loop.train, scenes=16))  # of the curve
        for more in (["--until", "1"], ["--resume"]):
            assert not (output / "checkpoint").exists()
            patch.setattr(sys, "argv", [*words, *more])
            train_tiny.main()
    return output, measured


@pytest.fixture(scope="module")
def text(run):
    return (run[0] / "checkpoint" / "README.md").read_text()


def test_the_curve_lies_with_it(run):
    output, _ = run
    curve = (output / "checkpoint" / loop.CURVE).read_text()
    assert curve == (output / loop.CURVE).read_text()
    assert [json.loads(line)["step"] for line in curve.splitlines()] == [1, 2]


def test_the_command_is_one_that_does_the_whole(run, text):
    (command,) = re.findall(r"^```\n(.+)\n```$", text, re.M)
    assert command.startswith("python scripts/train_tiny.py --family llava --steps 2 ")
    assert f"--output '{run[0]}'" in command  # quoted
    assert "--resume" not in command


def test_what_it_says_of_the_run(run, text):
    output, _ = run
    words = " ".join(text.split())
    assert text.startswith("---\nlicense: mit\n")
    assert "# A tiny LLaVA-1.5, trained from scratch on generated scenes" in words
    size = (output / "checkpoint" / "model.safetensors").stat().st_size
    assert f"{size / 2e6:.1f}" in words  # million parameters, of two bytes each
    assert "144 visual tokens an image of 168 x 168 pixels" in words
    assert "4 scenes, each seen once, the first 2 to the vision tower alone, without " in words
    assert "; 5 questions each on existence, colour" in words
    for setting in ("Steps 2", "batch 2", "per_kind 1", "tower_steps 1", "seed 0"):
        assert setting in words
    last = json.loads((output / loop.CURVE).read_text().splitlines()[-1])
    assert f" {last['minutes']:.0f} minutes " in words
    assert f"torch {torch.__version__.split('+')[0]}" in words


def test_the_table_is_of_the_weights_as_shipped_on_unseen_scenes(run, text):
    _, measured = run
    assert measured.rounded
    assert f"On {SCENES} unseen scenes" in text and len(measured.images) == SCENES
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert header == ["questions on", "how many", "accuracy, %", "standard error"]
    asked = measured.asked
    assert sum(asked.values()) == 5 * SCENES and asked["existence"] > asked["colour"]
    assert rows[:-1] == [
        [
            kind,
            str(asked[kind]),
            f"{100 * p:.1f}",
            f"{100 * (p * (1 - p) / asked[kind]) ** 0.5:.1f}",
        ]
        for kind, p in SCORES.items()
    ]
    assert rows[-1] == ["mean of the kinds", "", "50.0", ""]


def test_the_scenes_of_the_table_are_not_those_of_the_curve(run):
    from scripts.tiny.loop import make_trainee

    output, measured = run
    trainee = make_trainee("llava", output / "fresh")
    shared = trainee.prompts, trainee.drawing, trainee.grids
    for seed in (0, loop.HELD_OUT):  # of the training, of the curve
        seen = Steps(*shared, seed, 16, 1, 2, plain=True)
        for step in range(2):
            images = seen[step].images
            assert not any((images == one).flatten(1).all(1).any() for one in measured.images)
