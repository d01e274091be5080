"""The methods that choose tokens, one a file: "hiprune" is the paper's, "hiprune_pp" its third
version's.

The others are our own implementations of methods to compare with, with the same budget and the same
patch, so that only the choice differs.
"""

from hiprune.methods.base import NEEDS, OF_TEXT, WITH_CLS, Images, Method
from hiprune.methods.choosing import choose_tokens
from hiprune.methods.registry import METHODS, method_of, methods

__all__ = [
    "METHODS",
    "NEEDS",
    "OF_TEXT",
    "WITH_CLS",
    "Images",
    "Method",
    "choose_tokens",
    "method_of",
    "methods",
]
