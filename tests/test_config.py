"""HiPruneConfig: defaults, variables read when it is made, and every bad value with its message."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from hiprune import HiPruneConfig, HiPruneError
from hiprune import config as config_module

FAMILIES = ("llava", "llava_next", "qwen2_5_vl")


@pytest.mark.parametrize(
    ("family", "retention", "layer"),
    [("llava", 192, 9), ("llava_next", 640, 9), ("qwen2_5_vl", 0.334, 16)],
)
def test_defaults_of_each_family(family, retention, layer):
    expected = HiPruneConfig(retention=retention, alpha=0.1, object_layer=layer)
    assert HiPruneConfig.from_env(family) == expected
    assert HiPruneConfig().resolve(family) == expected


def test_the_variables_are_read_when_the_configuration_is_made(monkeypatch):
    for retention, alpha, layer in [("64", "0.5", "5"), ("576", "1", "24"), ("1", "0", "1")]:
        monkeypatch.setenv("HIPRUNE_RETENTION", retention)
        monkeypatch.setenv("HIPRUNE_ALPHA", alpha)
        monkeypatch.setenv("HIPRUNE_OBJECT_LAYER", layer)
        expected = HiPruneConfig(int(retention), float(alpha), int(layer))
        assert HiPruneConfig.from_env("llava") == expected


def test_each_family_has_its_own_variable_and_bounds(monkeypatch):
    monkeypatch.setenv("HIPRUNE_RETENTION", "2880")
    monkeypatch.setenv("HIPRUNE_QWEN_RETENTION", "1")
    monkeypatch.setenv("HIPRUNE_OBJECT_LAYER", "24")
    assert HiPruneConfig.from_env("llava_next").retention == 2880
    assert HiPruneConfig.from_env("qwen2_5_vl").retention == 1.0
    assert isinstance(HiPruneConfig.from_env("qwen2_5_vl").retention, float)
    with pytest.raises(HiPruneError):
        HiPruneConfig.from_env("llava")


BAD_COUNT = ["", " ", "abc", "0", "-1", "577", "nan", "1.5", "1e2", "1_0", "٣", "64 128", "inf"]
BAD_SHARE = ["", " ", "abc", "nan", "1.5", "-0.1", "inf", "1_0", "٠", "0,5"]


def message(family: str, name: str, text: str, monkeypatch) -> str:
    monkeypatch.setenv(name, text)
    with pytest.raises(HiPruneError) as caught:
        HiPruneConfig.from_env(family)
    assert f"{name}={text!r}: expected" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text", BAD_COUNT)
def test_bad_retention(text, monkeypatch):
    assert "1 to 576" in message("llava", "HIPRUNE_RETENTION", text, monkeypatch)


@pytest.mark.parametrize("text", [*BAD_COUNT[:5], "2881"])
def test_bad_retention_of_llava_next(text, monkeypatch):
    assert "1 to 2880" in message("llava_next", "HIPRUNE_RETENTION", text, monkeypatch)


@pytest.mark.parametrize("text", [*BAD_SHARE, "0", "0.0"])
def test_bad_retention_of_qwen(text, monkeypatch):
    assert "(0, 1]" in message("qwen2_5_vl", "HIPRUNE_QWEN_RETENTION", text, monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", BAD_SHARE)
def test_bad_alpha(family, text, monkeypatch):
    assert "from 0 to 1" in message(family, "HIPRUNE_ALPHA", text, monkeypatch)


@pytest.mark.parametrize(("family", "layers"), [("llava", 24), ("llava_next", 24)])
@pytest.mark.parametrize("text", [*BAD_COUNT[:5], "25", "nan", "1.5"])
def test_bad_object_layer(family, layers, text, monkeypatch):
    assert f"1 to {layers}" in message(family, "HIPRUNE_OBJECT_LAYER", text, monkeypatch)


def test_bad_object_layer_of_qwen(monkeypatch):
    assert "1 to 32" in message("qwen2_5_vl", "HIPRUNE_OBJECT_LAYER", "33", monkeypatch)


def test_unknown_family():
    with pytest.raises(HiPruneError, match=r"family='llama': expected one of .*llava, "):
        HiPruneConfig.from_env("llama")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retention", 0), ("retention", -3), ("retention", 0.0), ("retention", 1.5),
        ("retention", math.nan), ("retention", True), ("retention", "192"),
        ("alpha", -0.1), ("alpha", 1.1), ("alpha", math.nan), ("alpha", None), ("alpha", "0.1"),
        ("object_layer", 0), ("object_layer", 9.0), ("object_layer", False),
        ("object_layer", "9"), ("retention", np.int64(0)), ("retention", np.float32(1.5)),
        ("retention", np.bool_(True)), ("alpha", np.float64(2)), ("object_layer", np.float64(9)),
    ],
)  # fmt: skip
def test_bad_arguments(name, value):
    shown = value.item() if isinstance(value, np.number) else value
    with pytest.raises(HiPruneError, match=re.escape(f"{name}={shown!r}: expected")):
        HiPruneConfig(**{name: value})


def test_it_is_frozen():
    with pytest.raises(AttributeError):
        HiPruneConfig().alpha = 0.5


@pytest.mark.parametrize(
    ("retention", "tokens", "budget"),
    [
        (192, 576, 192),
        (600, 576, 576),
        (0.334, 108, 36),
        (0.112, 108, 12),
        (1.0, 7, 7),
        (0.01, 9, 1),
    ],
)
def test_budget_of_an_image(retention, tokens, budget):
    assert HiPruneConfig(retention=retention).budget(tokens) == budget


@pytest.mark.parametrize(
    ("given", "kept"),
    [(np.int64(1), 1), (np.uint8(192), 192), (np.float64(1), 1.0), (np.float32(0.5), 0.5)],
)
def test_numbers_of_numpy_are_kept_as_pythons(given, kept):
    config = HiPruneConfig(given, np.float64(0.5), np.int32(9), method="random", seed=np.int64(3))
    assert config == HiPruneConfig(kept, 0.5, 9, method="random", seed=3)
    values = (config.retention, config.alpha, config.object_layer, config.seed)
    assert [type(value) for value in values] == [type(kept), float, int, int]


def test_one_is_a_token_in_python_and_everything_in_qwens_variable():
    assert HiPruneConfig(1).budget(576) == 1
    assert HiPruneConfig(1.0).budget(576) == 576
    assert HiPruneConfig.from_env("llava", {"HIPRUNE_RETENTION": "1"}).budget(576) == 1
    share = HiPruneConfig.from_env("qwen2_5_vl", {"HIPRUNE_QWEN_RETENTION": "1"})
    assert share.budget(576) == 576
    with pytest.raises(HiPruneError, match=r"1 is one token.*1\.0 is all"):
        HiPruneConfig(0)
    with pytest.raises(HiPruneError, match=r"share of the image's tokens: 1 is all"):
        HiPruneConfig.from_env("qwen2_5_vl", {"HIPRUNE_QWEN_RETENTION": "2"})


@pytest.mark.parametrize(
    ("family", "layers", "layer"),
    [
        ("llava", None, 9), ("llava", 24, 9), ("llava_next", 24, 9), ("llava", 8, 3),
        ("llava", 6, 2), ("llava", 12, 5), ("llava", 27, 10), ("llava", 1, 1),
        ("qwen2_5_vl", None, 16), ("qwen2_5_vl", 32, 16), ("qwen2_5_vl", 8, 4),
        ("qwen2_5_vl", 5, 3),
    ],
)  # fmt: skip
def test_the_default_object_layer_is_as_deep_as_the_papers(family, layers, layer):
    assert HiPruneConfig().resolve(family, layers).object_layer == layer
    assert HiPruneConfig.from_env(family, {}, layers).object_layer == layer
    assert HiPruneConfig(object_layer=7).resolve(family, layers).object_layer == 7


def test_the_variable_is_bound_by_the_models_layers():
    environ = {"HIPRUNE_OBJECT_LAYER": "9"}
    with pytest.raises(HiPruneError, match=r"HIPRUNE_OBJECT_LAYER='9': expected .* from 1 to 8 "):
        HiPruneConfig.from_env("llava", environ, layers=8)
    environ = {"HIPRUNE_OBJECT_LAYER": "30"}
    assert HiPruneConfig.from_env("llava", environ, layers=32).object_layer == 30


@pytest.mark.parametrize(
    ("family", "tokens", "retention"),
    [
        ("llava", 576, 192), ("llava", 256, 192), ("llava", 192, 192), ("llava", 144, 48),
        ("llava", 1, 1), ("llava_next", 720, 640), ("llava_next", 180, 40),
    ],
)  # fmt: skip
def test_a_default_budget_that_a_model_cannot_have_is_the_papers_share(family, tokens, retention):
    assert HiPruneConfig().resolve(family, None, tokens).retention == retention
    assert HiPruneConfig.from_env(family, {}, tokens=tokens).retention == retention
    assert HiPruneConfig(300).resolve(family, None, tokens).retention == 300


def test_a_default_that_is_not_the_papers_is_told_once(caplog):
    config_module._say_once.cache_clear()
    for _ in range(3):
        HiPruneConfig().resolve("llava", 24, 576)
        HiPruneConfig(48, object_layer=3).resolve("llava", 8, 144)
    assert not caplog.records
    for _ in range(3):
        HiPruneConfig().resolve("llava", 8, 144)
    layer, retention = (record.getMessage() for record in caplog.records)
    assert layer.startswith("object_layer=3 of this model's 8 layers")
    assert retention.startswith("retention=48 of this model's 144 tokens per image")
