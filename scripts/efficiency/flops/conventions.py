"""The conventions by which the work of a model is told as one number; what each leaves out."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.efficiency.flops.count import Counts

TEXT_TOKENS = 49  # with these the paper's Table 5 comes out to the digit
PASSES = 2


@dataclass(frozen=True)
class Convention:
    """How a table is to be read: its unit, and what it counts."""

    name: str
    unit: str
    meaning: str


CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention(
            "paper",
            "FLOPs",
            "2 x the weights of all linear layers x tokens, as the paper's Table 5: every layer "
            "of the vision tower and its patch convolution, projector or mergers on every visual "
            "token, whether kept or not, the language model on text and kept tokens, lm_head on "
            "every position. The attention's own products and the scoring are not counted.",
        ),
        Convention(
            "fastv",
            "multiply-adds",
            "T(4 n d^2 + 2 n^2 d + 3 n d m), the formula of FastV, PyramidDrop and VisionZip: the "
            "language model's T layers on its n visual tokens alone, attention included, without "
            "text and lm_head; a multiplication and its addition are one. Grouped keys and values "
            "(Qwen's) count as narrow as they are.",
        ),
        Convention(
            "executed",
            "FLOPs",
            "all that this implementation multiplies up to the first answer token, 2 per "
            "multiply-add, attention included (the causal mask's unused half, too), lm_head on "
            "the last position alone (transformers 4.37 runs it on all). Pruned: no layer after "
            "the output layer, there attention, output projection and MLP for the kept tokens' "
            "queries alone; projector or mergers on kept tokens; scoring is QK^T of two layers, "
            "taken twice by the kernel on a GPU and once on a CPU. Unpruned: what the unpatched "
            "model runs.",
        ),
    )
}


@dataclass(frozen=True)
class Figures:
    """One row: the convention's unit, not T; None is what the convention does not count."""

    vision: int | None
    scoring: int | None
    projector: int | None
    llm: int

    @property
    def total(self) -> int:
        return sum(part or 0 for part in (self.vision, self.scoring, self.projector, self.llm))


def figures(
    counts: Counts,
    convention: str,
    tokens: int,
    kept: int | None = None,
    text_tokens: int = TEXT_TOKENS,
    passes: int = PASSES,
) -> Figures:
    """What one prompt with one image costs up to the first answer token.

    Args:
        counts: of fvcore (views.py, qwen.py), or by hand (tests/closed_flops.py).
        convention: a key of CONVENTIONS.
        tokens: N of the image.
        kept: N'; None: the unpruned model.
        text_tokens: beside the image, placeholders not among them.
        passes: of the scoring over QK^T: 2 on a GPU, 1 on a CPU.
    """
    visual = tokens if kept is None else kept
    positions = visual + text_tokens
    if convention == "fastv":
        return Figures(None, None, None, counts.layers(visual).total)
    if convention == "paper":
        llm = counts.layers(positions) + counts.lm_head(positions)
        parts = (counts.tower(), counts.projector(tokens), llm)
        vision, projector, llm = (2 * work.weights for work in parts)
        return Figures(vision, None, projector, llm)
    if convention != "executed":
        raise ValueError(f"convention={convention!r}: expected one of {', '.join(CONVENTIONS)}")
    tower = counts.tower() if kept is None else counts.pruned_tower(kept)
    scoring = 0 if kept is None else counts.scoring_pass().total * passes
    llm = counts.layers(positions) + counts.lm_head(1)
    return Figures(2 * tower.total, 2 * scoring, 2 * counts.projector(visual).total, 2 * llm.total)
