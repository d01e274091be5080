"""The vLLM plugin: what turns it on, what a model cannot have, what becomes of what is set."""

import re
from functools import partial
from types import SimpleNamespace

import pytest
import transformers
import vllm_engines
from hiprune.models import vllm_plugin
from hiprune.models.vllm_llava import clip_tower
from hiprune.models.vllm_qwen import merged_tower
from hiprune.models.vllm_tower import check_engine, check_request, passes

from hiprune.errors import HiPruneError

TOWERS = {
    "qwen2_5_vl": partial(merged_tower, family="qwen2_5_vl"),
    "llava": clip_tower,
    "llava_next": clip_tower,
}


def tower(family, **given):
    """What is known of a small model's tower, with settings by --hf-overrides."""
    config = transformers.AutoConfig.from_pretrained(vllm_engines.checkpoint(family))
    if given:
        config.hiprune = given
    return TOWERS[family](config)


@pytest.mark.parametrize("family", TOWERS)
def test_unset_is_vllm_as_it_is(family, monkeypatch):
    assert tower(family) is None
    monkeypatch.setenv("HIPRUNE_ANSWERS", "somewhere")  # of the benchmarks: no setting
    assert tower(family) is None


@pytest.mark.parametrize("vision", ["pixtral", "siglip_vision_model"])
def test_unset_is_vllm_as_it_is_for_other_towers_too(vision):
    config = transformers.LlavaConfig(
        vision_config=transformers.AutoConfig.for_model(vision), text_config={"model_type": "llama"}
    )
    assert clip_tower(config) is None
    config.hiprune = {"retention": 16}
    with pytest.raises(HiPruneError, match="expected 'clip_vision_model'"):
        clip_tower(config)


def test_variables_and_overrides_say_the_same(monkeypatch):
    monkeypatch.setenv("HIPRUNE_QWEN_RETENTION", "0.25")
    monkeypatch.setenv("HIPRUNE_ALPHA", "0.3")
    by_variable = tower("qwen2_5_vl").config
    monkeypatch.undo()
    assert by_variable == tower("qwen2_5_vl", retention=0.25, alpha=0.3).config
    assert by_variable.object_layer == 4  # as deep in 8 blocks as 16 in 32


def test_both_are_refused(monkeypatch):
    monkeypatch.setenv("HIPRUNE_ALPHA", "0.3")
    with pytest.raises(HiPruneError, match=r"HIPRUNE_ALPHA='0\.3' beside --hf-overrides"):
        tower("llava", retention=32)


def test_another_familys_budget_is_refused(monkeypatch):
    monkeypatch.setenv("HIPRUNE_RETENTION", "192")
    with pytest.raises(HiPruneError, match="HIPRUNE_RETENTION='192': expected HIPRUNE_QWEN_RET"):
        tower("qwen2_5_vl")


@pytest.mark.parametrize(
    "family, variables, told",
    [
        ("llava", {"HIPRUNE_RETENTION": "145"}, "HIPRUNE_RETENTION='145': retention=145: exp"),
        ("llava", {"HIPRUNE_OBJECT_LAYER": "9"}, "HIPRUNE_OBJECT_LAYER='9': expected"),
        ("llava", {"HIPRUNE_OBJECT_LAYER": "8"}, "object_layer=8: expected 1 to 7"),
        ("llava", {"HIPRUNE_METHOD": "cdpruner"}, "method='cdpruner': needs"),
        ("llava", {"HIPRUNE_METHOD": "visionzip"}, "expected one of hiprune, random, uniform, cls"),
        ("llava_next", {"HIPRUNE_RETENTION": "4"}, "retention=4: expected 5 to 720"),
        ("qwen2_5_vl", {"HIPRUNE_QWEN_RETENTION": "1.5"}, "HIPRUNE_QWEN_RETENTION='1.5': exp"),
        ("qwen2_5_vl", {"HIPRUNE_METHOD": "cls"}, "HIPRUNE_METHOD='cls'"),
        ("qwen2_5_vl", {"HIPRUNE_SCORE": "cls"}, "score='cls': this model's vision tower has no"),
    ],
)
def test_what_a_model_cannot_have_is_named(family, variables, told, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(HiPruneError) as error:
        tower(family)
    assert told in str(error.value)


@pytest.mark.parametrize("given", [{"retentions": 1}, {"retention": 0.0}, {"alpha": "x"}])
def test_an_override_that_is_none_is_named(given):
    with pytest.raises(HiPruneError, match=re.escape(f"--hf-overrides hiprune={given!r}: ")):
        tower("llava", **given)


def engine(**options):
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            multimodal_config=SimpleNamespace(enable_mm_embeds=False, video_pruning_rate=None)
        ),
        parallel_config=SimpleNamespace(pipeline_parallel_size=1),
        speculative_config=None,
        compilation_config=SimpleNamespace(compile_mm_encoder=False, cudagraph_mm_encoder=False),
    )
    for part in (config.model_config.multimodal_config, config.parallel_config,
                 config.compilation_config, config):  # fmt: skip
        vars(part).update({n: v for n, v in options.items() if n in vars(part)})
    return config


@pytest.mark.parametrize(
    "option",
    [
        {"pipeline_parallel_size": 2},
        {"speculative_config": object()},
        {"compile_mm_encoder": True},
        {"cudagraph_mm_encoder": True},
        {"enable_mm_embeds": True},
        {"video_pruning_rate": 0.5},
    ],
)
def test_an_engine_that_cannot_be_right_is_refused(option):
    check_engine(engine())
    with pytest.raises(HiPruneError, match=f"{next(iter(option))}.* with HiPrune: expected"):
        check_engine(engine(**option))


def test_a_requests_own_budget_is_refused():
    check_request({"max_pixels": 10})
    with pytest.raises(HiPruneError, match=r"mm_processor_kwargs: retention=0\.5"):
        check_request({"retention": 0.5})


def test_a_pass_of_the_tower_is_bounded():
    sizes = [30, 30, 50, 200, 10]
    found = [sizes[part] for part in passes(sizes, 100)]
    assert found == [[30, 30], [50], [200], [10]]  # the one that is larger goes by itself
    assert list(passes([], 100)) == []


def test_another_vllm_is_refused_where_something_is_set(monkeypatch):
    monkeypatch.setattr(vllm_plugin, "_vllm_version", lambda: "0.31.2")
    vllm_plugin.register()  # unset: not a word
    monkeypatch.setenv("HIPRUNE_ALPHA", "0.3")
    with pytest.raises(HiPruneError, match=r"vLLM 0\.31\.2 with HIPRUNE_ALPHA='0\.3': expected"):
        vllm_plugin.register()
