"""The paper's figures: maps of all layers, what is measured on them, and painting what is kept."""

from hiprune.figures.panels import (
    add_colour_bar,
    add_legend,
    attention_figure,
    caption,
    counts,
    selection_figure,
    tokens_figure,
)

__all__ = [
    "add_colour_bar",
    "add_legend",
    "attention_figure",
    "caption",
    "counts",
    "selection_figure",
    "tokens_figure",
]
