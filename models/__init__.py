"""One adapter a model family: what HiPrune changes in that family's released code."""
