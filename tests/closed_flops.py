"""The closed form of what fvcore counts: from the architecture's numbers alone, by hand.

The oracle of the tests. Symbols: d width, m width of the MLP, n positions, p side of a patch;
all in multiply-adds.
"""

from __future__ import annotations

from scripts.efficiency.architectures import Architecture, Text
from scripts.efficiency.flops.count import Picture, Work

CLIP = ("llava", "llava_next")
WINDOW = 4  # Qwen2.5-VL: 112 pixels are 4 merged tokens to a side


class _ClosedText:
    def __init__(self, text: Text) -> None:
        self.text = text

    def layers(self, positions: int) -> Work:
        """T(2 n d d_q + 2 n d d_kv + 3 n d m), and 2 n^2 d_q.

        d_q and d_kv are the widths of all heads: d, but where keys are grouped or heads are wider.
        """
        text, n, d = self.text, positions, self.text.width
        d_q, d_kv = text.heads * text.head_width, text.kv_heads * text.head_width
        layer = Work(2 * n * d * (d_q + d_kv) + 3 * n * d * text.mlp, 2 * n * n * d_q)
        return layer * text.layers

    def lm_head(self, positions: int) -> Work:
        return Work(positions * self.text.width * self.text.vocabulary)


class ClosedViews(_ClosedText):
    """A :class:`Counts` of LLaVA-1.5 and LLaVA-NeXT, whose output layer is L - 1, of InternVL and
    LLaVA-OneVision, whose output layer is L; LLaVA-OneVision has no CLS."""

    def __init__(self, architecture: Architecture, picture: Picture) -> None:
        super().__init__(architecture.text)
        self.vision, self.picture = architecture.vision, picture
        self.unit = picture.merge**2  # patches of a token
        self.patches = picture.views * picture.rows * picture.columns
        # Of a view, with CLS.
        self.length = picture.rows * picture.columns + (architecture.family != "llava_onevision")
        # Layers that run whole where the output layer does not.
        self.whole = self.vision.layers - (2 if architecture.family in CLIP else 1)

    def tower(self) -> Work:
        return self._patches() + self._layer() * self.vision.layers

    def pruned_tower(self, kept: int) -> Work:
        d, m, n = self.vision.width, self.vision.mlp, self.picture.views * self.length
        rest = kept * self.unit
        output = Work(3 * n * d * d + rest * (d * d + 2 * d * m), 2 * rest * self.length * d)
        return self._patches() + self._layer() * self.whole + output

    def scoring_pass(self) -> Work:
        return Work(attention=self.picture.views * self.length**2 * self.vision.width) * 2

    def projector(self, tokens: int) -> Work:
        d = self.text.width
        return Work(tokens * (self.unit * self.vision.width * d + d * d))

    def _patches(self) -> Work:
        return Work(self.patches * 3 * self.vision.patch**2 * self.vision.width)

    def _layer(self) -> Work:
        d, m, n = self.vision.width, self.vision.mlp, self.picture.views * self.length
        return Work(4 * n * d * d + 2 * n * d * m, 2 * n * self.length * d)


class ClosedQwen(_ClosedText):
    """A :class:`Counts` of Qwen2-VL, Qwen2.5-VL, both of whose scored blocks attend fully, and
    Qwen3-VL."""

    def __init__(self, architecture: Architecture, picture: Picture) -> None:
        super().__init__(architecture.text)
        self.vision, self.picture = architecture.vision, picture
        self.unit = picture.merge**2
        self.patches = picture.rows * picture.columns
        # Matrices of the MLP: Qwen2.5-VL's has a gate.
        self.mlp = 3 if architecture.family == "qwen2_5_vl" else 2
        self.full = len(self.vision.full_attention) or self.vision.layers

    def tower(self) -> Work:
        full = self.full
        blocks = self._full() * full + self._windowed() * (self.vision.layers - full)
        return self._patches() + blocks

    def pruned_tower(self, kept: int) -> Work:
        d, m, n, rest = self.vision.width, self.vision.mlp, self.patches, kept * self.unit
        output = Work(3 * n * d * d + rest * (d * d + self.mlp * d * m), 2 * rest * n * d)
        full = self.full - 1
        blocks = self._full() * full + self._windowed() * (self.vision.layers - 1 - full)
        return self._patches() + blocks + output

    def scoring_pass(self) -> Work:
        return Work(attention=self.patches**2 * self.vision.width) * 2

    def projector(self, tokens: int) -> Work:
        wide, mergers = self.unit * self.vision.width, 1 + len(self.vision.deepstack)
        return Work(tokens * mergers * (wide * wide + wide * self.text.width))

    def _patches(self) -> Work:
        """A patch is two frames of three colours: an image is taken twice."""
        return Work(self.patches * 2 * 3 * self.vision.patch**2 * self.vision.width)

    def _full(self) -> Work:
        return Work(self._weights(), 2 * self.patches**2 * self.vision.width)

    def _windowed(self) -> Work:
        merge = self.picture.merge
        rows, columns = (
            [min(WINDOW, side - start) for start in range(0, side, WINDOW)]
            for side in (self.picture.rows // merge, self.picture.columns // merge)
        )
        squares = sum((self.unit * row * column) ** 2 for row in rows for column in columns)
        return Work(self._weights(), 2 * squares * self.vision.width)

    def _weights(self) -> int:
        d, m = self.vision.width, self.vision.mlp
        return self.patches * (4 * d * d + self.mlp * d * m)


def closed_form(architecture: Architecture, picture: Picture) -> ClosedViews | ClosedQwen:
    return (ClosedQwen if architecture.is_qwen else ClosedViews)(architecture, picture)
