"""A method's own settings: HiPruneConfig's, and variables of the environment."""

from __future__ import annotations

import pytest

import hiprune
from hiprune import HiPruneConfig, HiPruneError
from hiprune.methods import METHODS, NEEDS


def test_a_methods_own_settings_are_variables():
    environ = {
        "HIPRUNE_METHOD": "scope",
        "HIPRUNE_SCOPE_ALPHA": "0.5",
        "HIPRUNE_VISPRUNER_IMPORTANT_RATIO": "0.75",  # of a method that is not chosen
        "HIPRUNE_ALPHA": "0.2",
    }
    config = HiPruneConfig.from_env("llava", environ)
    assert (config.settings, config.alpha) == ({"alpha": 0.5}, 0.2)
    assert config.variant() == {"method": "scope", "scope_alpha": 0.5}
    assert hiprune.methods() == tuple(METHODS)
    environ = {"HIPRUNE_METHOD": "hiprune_pp", "HIPRUNE_BETA": "0.2", "HIPRUNE_PP_SIGN": "-"}
    config = HiPruneConfig.from_env("llava", environ)
    assert config.settings == {"beta": 0.2, "sign": "-"}
    zip_config = HiPruneConfig(9, method="visionzip", settings={"contextual": 3})
    for each in (config, zip_config):
        assert HiPruneConfig.from_env("llava", each.variables("llava")).variant() == each.variant()


@pytest.mark.parametrize(
    ("method", "variable", "text", "expected"),
    [
        ("scope", "HIPRUNE_SCOPE_ALPHA", "", "a number from 0 to 100"),
        ("scope", "HIPRUNE_SCOPE_ALPHA", "1_0", "a number from 0 to 100"),
        ("scope", "HIPRUNE_SCOPE_ALPHA", "nan", "a number from 0 to 100"),
        ("vispruner", "HIPRUNE_VISPRUNER_IMPORTANT_RATIO", "1.5", "a number from 0 to 1"),
        ("visionzip", "HIPRUNE_VISIONZIP_CONTEXTUAL", "2.0", "an integer from 0"),
        ("hiprune_pp", "HIPRUNE_BETA", "much", "a number from 0 to 1"),
        ("hiprune_pp", "HIPRUNE_PP_COUNT", "half", "one of 'share', 'fifth'"),
    ],
)
def test_bad_variables_of_a_method_are_named(method, variable, text, expected):
    environ = {"HIPRUNE_METHOD": method, variable: text}
    with pytest.raises(HiPruneError, match=f"^{variable}={text!r}: expected {expected}"):
        HiPruneConfig.from_env("llava", environ)


def test_settings_of_another_method_are_refused():
    with pytest.raises(
        HiPruneError, match=r"^settings: beta=0\.1 with method='scope': expected alpha"
    ):
        HiPruneConfig(method="scope", settings={"beta": 0.1})
    with pytest.raises(HiPruneError, match=r"^alpha=-1 of method 'scope'"):
        HiPruneConfig(method="scope", settings={"alpha": -1})
    assert set(NEEDS) >= {need for method in METHODS.values() for need in method.needs}
