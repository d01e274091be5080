"""TokenChooser: the tokens that a configuration's method keeps; HiPrune's, or a simpler one's.

"random", "uniform" and "cls" are this repository's own implementations, with the same budget and
the same patch, so that only the choice differs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hiprune.config import HiPruneConfig
from hiprune.selection import TokenSelection, select_tokens


class TokenChooser:
    """Called with the scores of images, or of the views of one.

    Draws of "random" go on from call to call: every image has its own, in the order in which the
    images come; a new chooser begins anew from the seed.
    """

    def __init__(self, config: HiPruneConfig) -> None:
        self.config = config
        self._generators: dict[torch.device, torch.Generator] = {}

    def __call__(
        self, object_scores: Tensor, output_scores: Tensor, columns: int, budget: int
    ) -> TokenSelection:
        """(B, N) scores twice, c and N' -> B rows of exactly min(N', N) tokens."""
        config = self.config
        if config.method == "hiprune":
            return select_tokens(
                object_scores,
                output_scores,
                columns=columns,
                budget=budget,
                alpha=config.alpha,
                buffer=config.buffer,
                neighborhood=config.neighborhood,
                registers=config.registers,
            )
        scores = output_scores  # "cls": these are of the CLS token's attention
        if config.method == "random":
            generator = self._generator(scores.device)
            scores = torch.rand(scores.shape, generator=generator, device=scores.device)
        elif config.method == "uniform":
            scores = evenly_spaced(scores, budget)
        # Registers alone: the N' highest, ties and NaN as everywhere.
        return select_tokens(scores, scores, columns=columns, budget=budget, alpha=0.0)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.config.seed)
        return self._generators[device]


def evenly_spaced(scores: Tensor, budget: int) -> Tensor:
    """(B, N): 1 for the tokens in the middles of N' equal parts of the flat index, else 0."""
    tokens = scores.shape[1]
    budget = min(budget, tokens)
    # Whole numbers: floor((i + 1/2) N / N'), distinct since N >= N'.
    places = (2 * torch.arange(budget, device=scores.device) + 1) * tokens // (2 * budget)
    return torch.zeros_like(scores).index_fill(1, places, 1.0)
