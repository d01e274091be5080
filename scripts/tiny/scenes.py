"""Generated scenes: coloured, textured shapes on clutter, with the mask of each.

A scene follows from its seed and index alone. Lengths are shares of the image's side until they are
drawn, so that one scene can be drawn at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring")
COLOURS = {
    "red": (215, 35, 40),
    "green": (40, 160, 60),
    "blue": (45, 75, 225),
    "yellow": (240, 215, 45),
    "orange": (245, 130, 25),
    "purple": (130, 45, 165),
    "cyan": (50, 205, 215),
    "pink": (245, 135, 190),
}
TEXTURES = ("plain", "stripes", "dots", "checks")
THINGS = (3, 8)  # in a scene
SIZES = (0.16, 0.26)  # diameter of a thing: two to three tokens of twelve


@dataclass(frozen=True)
class Drawing:
    """How a family's scenes are drawn: pixels of a side, smallest and largest diameter."""

    side: int
    sizes: tuple[float, float] = SIZES


DRAWINGS = {
    "llava": Drawing(168),
    "llava_next": Drawing(336, (0.09, 0.16)),  # for its tiles, which show things twice as large
    "qwen2_5_vl": Drawing(336),
}


@dataclass(frozen=True)
class Thing:
    """One object: what it is and where, in shares of the image's side."""

    shape: str
    colour: str
    texture: str
    x: float  # centre
    y: float
    size: float  # diameter
    angle: float  # radians


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes:
        image: (S, S, 3) uint8.
        masks: (n, S, S) bool, the pixels of each thing.
        things: n of them; they do not overlap.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    things: tuple[Thing, ...]

    def coverage(self, columns: int) -> NDArray[np.float32]:
        """(n, columns, columns): the share of each token's square that each thing covers."""
        n, side, _ = self.masks.shape
        step = side // columns
        squares = self.masks.reshape(n, columns, step, columns, step)
        return squares.mean(axis=(2, 4), dtype=np.float32)


def make_scene(seed: int, index: int, side: int, sizes: tuple[float, float] = SIZES) -> Scene:
    """Scene ``index`` of the series ``seed``, drawn ``side`` pixels wide and high.

    ``sizes`` are the smallest and the largest diameter of a thing.
    """
    rng = np.random.default_rng([seed, index])
    things = _place(rng, sizes)
    pixels = _background(rng, side)
    masks = np.zeros((len(things), side, side), bool)
    for thing, mask in zip(things, masks, strict=True):
        _draw(rng, thing, pixels, mask)
    pixels += rng.standard_normal((side, side, 1), dtype=np.float32) * rng.uniform(0, 6)
    return Scene(pixels.clip(0, 255).astype(np.uint8), masks, things)


def _place(rng: np.random.Generator, sizes: tuple[float, float]) -> tuple[Thing, ...]:
    """Things that do not overlap; the palette is narrowed so that shapes and colours recur."""
    count = rng.integers(THINGS[0], THINGS[1] + 1)
    shapes = rng.choice(SHAPES, rng.integers(2, len(SHAPES) + 1), replace=False)
    colours = rng.choice(list(COLOURS), rng.integers(2, len(COLOURS) + 1), replace=False)
    things: list[Thing] = []
    for _ in range(200):
        if len(things) == count:
            break
        size = rng.uniform(*sizes)
        x, y = rng.uniform(0.52 * size, 1 - 0.52 * size, 2)
        apart = (max(abs(x - t.x), abs(y - t.y)) > 0.53 * (size + t.size) for t in things)
        if not all(apart):
            continue
        thing = Thing(
            str(rng.choice(shapes)),
            str(rng.choice(colours)),
            str(rng.choice(TEXTURES)),
            float(x),
            float(y),
            float(size),
            float(rng.uniform(-0.2, 0.2)),
        )
        things.append(thing)
    return tuple(things)


def _background(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    """(side, side, 3) float: soft greyish clouds, lines and blobs, none of them a strong colour."""
    cells = int(rng.integers(2, 9))
    clouds = rng.normal(0, 22, (cells, cells, 1)) + rng.normal(0, 9, (cells, cells, 3))
    clouds = (clouds + rng.uniform(50, 200)).clip(0, 255).astype(np.uint8)
    canvas = Image.fromarray(clouds).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 14)):
        grey = rng.uniform(20, 235)
        fill = tuple(int(c) for c in (grey + rng.uniform(-14, 14, 3)).clip(0, 255))
        x, y = rng.uniform(0, side, 2)
        width, height = rng.uniform(0.02, 0.3, 2) * side
        if rng.random() < 0.6:
            end = (x + rng.uniform(-0.5, 0.5) * side, y + rng.uniform(-0.5, 0.5) * side)
            draw.line([(x, y), end], fill=fill, width=1 + int(rng.integers(max(side // 56, 1))))
        elif rng.random() < 0.5:
            draw.ellipse([x, y, x + width, y + height], outline=fill, width=max(side // 84, 1))
        else:
            draw.rectangle([x, y, x + width, y + height], outline=fill, width=max(side // 84, 1))
    return np.asarray(canvas, np.float32).copy()


def _draw(
    rng: np.random.Generator,
    thing: Thing,
    pixels: NDArray[np.float32],
    mask: NDArray[np.bool_],
) -> None:
    """Draw into (S, S, 3) pixels and the (S, S) mask, in place."""
    side = len(mask)
    radius = thing.size * side / 2
    left, top = int(thing.x * side - radius), int(thing.y * side - radius)
    left, top = max(left, 0), max(top, 0)
    right, bottom = left + int(2 * radius) + 2, top + int(2 * radius) + 2
    box = np.s_[top : min(bottom, side), left : min(right, side)]
    height, width = mask[box].shape
    x = ((np.arange(width, dtype=np.float32) + left + 0.5 - thing.x * side) / radius)[None]
    y = ((np.arange(height, dtype=np.float32) + top + 0.5 - thing.y * side) / radius)[:, None]
    c, s = cos(thing.angle), sin(thing.angle)
    u, v = c * x + s * y, c * y - s * x
    inside = (_depth(thing.shape, u, v) * radius + 0.5).clip(0, 1)
    mask[box] = inside > 0.5
    colour = np.array(COLOURS[thing.colour], np.float32) + rng.uniform(-14, 14, 3)
    light = _texture(thing.texture, u, v)[..., None]
    pixels[box] += inside[..., None] * (colour.astype(np.float32) * light - pixels[box])


def _depth(shape: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far inside the shape a point is (negative: outside), the radius being 1."""
    if shape == "square":
        return 0.82 - np.maximum(abs(u), abs(v))
    if shape == "diamond":
        return (1 - abs(u) - abs(v)) * 0.7
    if shape == "triangle":
        return np.minimum(0.75 - v, 0.46 + 0.447 * v - 0.894 * abs(u))
    if shape == "cross":
        arm, a, b = 0.32, abs(u), abs(v)
        return np.maximum(np.minimum(arm - a, 0.95 - b), np.minimum(arm - b, 0.95 - a))
    radius = np.sqrt(u * u + v * v)
    if shape == "circle":
        return 0.92 - radius
    if shape == "ring":
        return 0.21 - abs(radius - 0.73)
    if shape == "star":  # five points: fold the angle, then one edge from a tip to a dent
        fold = abs((np.arctan2(u, -v) + pi / 5) % (2 * pi / 5) - pi / 5)
        along, across = radius * np.cos(fold), radius * np.sin(fold)
        dent = (0.45 * cos(pi / 5), 0.45 * sin(pi / 5))
        edge = (dent[0] - 1, dent[1])
        length = (edge[0] ** 2 + edge[1] ** 2) ** 0.5
        return (across * edge[0] - (along - 1) * edge[1]) / length
    raise ValueError(f"shape={shape!r}: expected one of {', '.join(SHAPES)}")


def _texture(name: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, w) brightness: 1, or 0.7 where the pattern is."""
    if name == "plain":
        return np.ones(np.broadcast_shapes(u.shape, v.shape), np.float32)
    if name == "stripes":
        dark = np.sin(9 * (u + v)) > 0.2
    elif name == "dots":
        dark = np.sin(11 * u) * np.sin(11 * v) > 0.45
    else:
        dark = np.sin(8 * u) * np.sin(8 * v) > 0
    return np.where(dark, np.float32(0.7), np.float32(1))
