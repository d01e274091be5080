"""The one exception of the package."""


class HiPruneError(ValueError):
    """A setting, an input or a model that HiPrune cannot work with.

    The message names the argument or variable, the value found and what is expected.
    """
