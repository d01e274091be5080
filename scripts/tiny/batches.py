"""Batches of scenes with questions and dense targets, made on the fly from a seed and a step."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scripts.tiny.questions import KINDS, ask
from scripts.tiny.scenes import COLOURS, SHAPES, Drawing, Scene, make_scene
from scripts.tiny.tokens import Prompts

HELD_OUT = 2_000_000_011  # the seed of the scenes that no training sees
IGNORED = -100
COVERED = 0.15  # of a token's square; less than that is neither thing nor background
PRESENT = len(SHAPES) + len(COLOURS) + len(SHAPES) * len(COLOURS)  # what a scene can hold
POST_PROMPTS = 8  # one step in so many has the longer prompt of the evaluation programs


@dataclass
class Batch:
    """B scenes with Q questions each, padded to T tokens; N tokens an image.

    Attributes:
        images: (B, S, S, 3) uint8.
        shape, colour: (B, N) classes of what covers each token, 0 is background, IGNORED unclear.
        centre: (B, N) 1 where a thing's centre lies.
        present: (B, PRESENT) 1 for each shape, colour and pair of them in the scene.
        before, after: ids of the prompt before and after the image's tokens, the same for all.
        questions: (B, Q, T) ids, each from the question to its one-token answer.
        answer_at: (B, Q) where in T the answer stands.
        kinds: (B, Q) index into KINDS.
        newlines: () bool, whether LLaVA-NeXT's rows end in newlines, as in its unpruned prompts;
            merge type `spatial` has none.
    """

    images: Tensor
    shape: Tensor
    colour: Tensor
    centre: Tensor
    present: Tensor
    before: Tensor
    after: Tensor
    questions: Tensor
    answer_at: Tensor
    kinds: Tensor
    newlines: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """A copy on ``device``."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def answers(self) -> Tensor:
        """(B, Q) ids of the answers."""
        return self.questions.gather(2, self.answer_at[..., None])[..., 0]


class Steps(Dataset):
    """The batch of every step; item ``step`` depends on the seed and ``step`` alone."""

    def __init__(
        self,
        prompts: Prompts,
        drawing: Drawing,
        grids: tuple[int, ...],
        seed: int,
        size: int,
        per_kind: int,
        steps: int,
        plain: bool = False,
    ) -> None:
        """
        Args:
            drawing: of the scenes; S is its side.
            grids: tokens in a row of each grid; N is the sum of their squares.
            seed: of the series of scenes.
            size: B.
            per_kind: questions of each kind; Q is five times that.
            steps: how many there are.
            plain: always the first form of the prompt, as for measuring.
        """
        self.prompts, self.drawing, self.grids = prompts, drawing, grids
        self.seed, self.size, self.per_kind, self.steps = seed, size, per_kind, steps
        self.plain = plain

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step, 1])
        forms = self.prompts.prefixes
        before, after = forms[0 if self.plain else rng.integers(len(forms))]
        post_prompt = not self.plain and rng.integers(POST_PROMPTS) == 0
        newlines = self.plain or rng.integers(2) == 0
        scenes = [
            make_scene(self.seed, step * self.size + index, self.drawing.side, self.drawing.sizes)
            for index in range(self.size)
        ]
        asked = [ask(scene, rng, self.per_kind) for scene in scenes]
        ids = [
            [self.prompts.question(q.text, q.answer, post_prompt) for q in questions]
            for questions in asked
        ]
        length = max(len(question) for questions in ids for question in questions)
        padded = np.zeros((self.size, len(ids[0]), length), np.int64)
        answer_at = np.zeros(padded.shape[:2], np.int64)
        for row, questions in enumerate(ids):
            for column, question in enumerate(questions):
                padded[row, column, : len(question)] = question
                answer_at[row, column] = len(question) - 1
        dense = [
            [
                np.concatenate(part)
                for part in zip(*(targets(s, c) for c in self.grids), strict=True)
            ]
            for s in scenes
        ]
        return Batch(
            torch.from_numpy(np.stack([scene.image for scene in scenes])),
            *(torch.from_numpy(np.stack(part)) for part in zip(*dense, strict=True)),
            torch.from_numpy(np.stack([present(scene) for scene in scenes])),
            torch.tensor(before),
            torch.tensor(after),
            torch.from_numpy(padded),
            torch.from_numpy(answer_at),
            torch.tensor([[KINDS.index(q.kind) for q in questions] for questions in asked]),
            torch.tensor(bool(newlines)),
        )


def present(scene: Scene) -> np.ndarray:
    """(PRESENT,) float: 1 for each shape, colour and pair of them in the scene."""
    found = np.zeros(PRESENT, np.float32)
    for thing in scene.things:
        shape, colour = SHAPES.index(thing.shape), list(COLOURS).index(thing.colour)
        pair = len(SHAPES) + len(COLOURS) + shape * len(COLOURS) + colour
        found[[shape, len(SHAPES) + colour, pair]] = 1
    return found


def targets(scene: Scene, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) x 3: shape, colour and centre of what lies under each token."""
    coverage = scene.coverage(columns).reshape(len(scene.things), -1)  # (n, N)
    most, which = coverage.max(axis=0), coverage.argmax(axis=0)
    shapes = np.array([1 + SHAPES.index(t.shape) for t in scene.things])
    colours = np.array([1 + list(COLOURS).index(t.colour) for t in scene.things])
    unclear = (most > 0) & (most < COVERED)
    shape = np.where(unclear, IGNORED, np.where(most > 0, shapes[which], 0))
    colour = np.where(unclear, IGNORED, np.where(most > 0, colours[which], 0))
    centre = np.zeros(columns * columns, np.int64)
    for thing in scene.things:
        centre[int(thing.y * columns) * columns + int(thing.x * columns)] = 1
    return shape, colour, centre
