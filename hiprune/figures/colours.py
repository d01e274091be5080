"""Okabe and Ito's colours, which readers with any colour vision tell apart."""

BLUE, VERMILION, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, YELLOW = "#56B4E9", "#F0E442"
GREY = "#666666"  # none of theirs
