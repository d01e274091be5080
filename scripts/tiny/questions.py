"""Questions with one-word answers about a generated scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.tiny.scenes import COLOURS, SHAPES, Scene, Thing

KINDS = ("existence", "colour", "shape", "count", "position")
NUMBERS = ("Zero", "One", "Two", "Three", "Four")
ANSWERS = (
    "Yes",
    "No",
    *(colour.capitalize() for colour in COLOURS),
    *(shape.capitalize() for shape in SHAPES),
    *NUMBERS,
    "Left",
    "Right",
    "Top",
    "Bottom",
)
MARGIN = 0.06  # of the side; nearer to the middle, nobody is asked which half a thing is in


@dataclass(frozen=True)
class Question:
    """A question, its one-word answer and its kind (one of KINDS)."""

    kind: str
    text: str
    answer: str


def ask(scene: Scene, rng: np.random.Generator, per_kind: int = 3) -> list[Question]:
    """``per_kind`` questions of each kind, one kind after the other.

    A kind that the scene gives nothing for (no colour that only one thing has, say) is replaced by
    existence, so the list always has ``len(KINDS) * per_kind`` questions.
    """
    asked = []
    for maker in (_existence, _colour, _shape, _count, _position):
        for _ in range(per_kind):
            asked.append(maker(scene.things, rng) or _existence(scene.things, rng))
    return asked


def _pick(rng: np.random.Generator, options: list):
    return options[rng.integers(len(options))]


def _existence(things: tuple[Thing, ...], rng: np.random.Generator) -> Question:
    """Half of the answers are Yes; half of the No's pair a shape and a colour that are both there.

    A third of the questions names a shape alone or a colour alone.
    """
    pairs = {(t.colour, t.shape) for t in things}
    shapes, colours = {t.shape for t in things}, {t.colour for t in things}
    yes = rng.random() < 0.5
    form = rng.integers(6)
    if form == 0:
        options = [s for s in SHAPES if (s in shapes) == yes]
        what = _pick(rng, options) if options else None
    elif form == 1:
        options = [c for c in COLOURS if (c in colours) == yes]
        what = f"{_pick(rng, options)} object" if options else None
    else:
        what = None
    if what is None:
        if yes:
            options = sorted(pairs)
        else:
            options = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in pairs]
            hard = [(c, s) for c, s in options if c in colours and s in shapes]
            if hard and rng.random() < 0.5:
                options = hard
        what = " ".join(_pick(rng, options))
    article = "an" if what[0] in "aeiou" else "a"
    return Question("existence", f"Is there {article} {what} in the image?", "Yes" if yes else "No")


def _colour(things: tuple[Thing, ...], rng: np.random.Generator) -> Question | None:
    shapes = [t.shape for t in things]
    single = [t for t in things if shapes.count(t.shape) == 1]
    if not single:
        return None
    thing = _pick(rng, single)
    return Question("colour", f"What color is the {thing.shape}?", thing.colour.capitalize())


def _shape(things: tuple[Thing, ...], rng: np.random.Generator) -> Question | None:
    colours = [t.colour for t in things]
    single = [t for t in things if colours.count(t.colour) == 1]
    if not single:
        return None
    thing = _pick(rng, single)
    return Question("shape", f"What shape is the {thing.colour} object?", thing.shape.capitalize())


def _count(things: tuple[Thing, ...], rng: np.random.Generator) -> Question | None:
    """How many of a shape or a colour; the number is drawn first, of those that can be asked."""
    counts = [(f"{s}s", sum(t.shape == s for t in things)) for s in SHAPES]
    counts[SHAPES.index("cross")] = ("crosses", counts[SHAPES.index("cross")][1])
    counts += [(f"{c} objects", sum(t.colour == c for t in things)) for c in COLOURS]
    counts = [(what, n) for what, n in counts if n < len(NUMBERS)]
    number = _pick(rng, sorted({n for _, n in counts}))
    what = _pick(rng, [what for what, n in counts if n == number])
    return Question("count", f"How many {what} are there?", NUMBERS[number])


def _position(things: tuple[Thing, ...], rng: np.random.Generator) -> Question | None:
    """Left or right, top or bottom; of a thing whose colour and shape no other has together."""
    pairs = [(t.colour, t.shape) for t in things]
    across = rng.random() < 0.5
    options = []
    for thing in things:
        offset = (thing.x if across else thing.y) - 0.5
        if pairs.count((thing.colour, thing.shape)) == 1 and abs(offset) > MARGIN:
            options.append((thing, offset < 0))
    if not options:
        return None
    thing, first = _pick(rng, options)
    what = f"{thing.colour} {thing.shape}"
    if across:
        return Question(
            "position",
            f"Is the {what} on the left or on the right?",
            "Left" if first else "Right",
        )
    return Question(
        "position", f"Is the {what} at the top or at the bottom?", "Top" if first else "Bottom"
    )
