"""lmms-eval's models that ask vLLM: the prompts, answers and counts of those on transformers."""

import pytest
import transformers
from hiprune.models.vllm_plugin import engine_name
from lmms_eval.api.instance import Instance
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.models import get_model
from vllm_engines import picture, requests

from hiprune import HiPruneError
from scripts.benchmarks import QWEN_TINY

MODEL, TASK = "qwen2_5_vl_hiprune", "questions"
SETTINGS = {"max_new_tokens": 4, "temperature": 0, "top_p": None, "num_beams": 1}
ASKED = [each for each in requests(40) if len(each.turns) == 1]  # some with two, three, no pictures
ENGINE = {"max_model_len": 2048, "max_num_seqs": 16, "enforce_eager": True}


@pytest.fixture(autouse=True)
def _tracker_as_it_was(monkeypatch):
    """Building our model wraps a method of lmms-eval until the results are written."""
    original = EvaluationTracker.save_results_aggregated
    monkeypatch.setattr(EvaluationTracker, "save_results_aggregated", original)


def to_visual(doc):
    return [picture(number) for number in doc]


def asked(settings=SETTINGS):
    return [
        Instance(
            request_type="generate_until",
            arguments=(each.turns[0], dict(settings), to_visual, number, TASK, "test"),
            idx=0,
            metadata={"task": TASK, "doc_id": number, "repeats": 1},
        )
        for number, each in enumerate(ASKED)
    ]


def build(name, **arguments):
    made = get_model(name)(
        str(QWEN_TINY.checkpoint),
        dtype="float32",
        device="cpu",
        device_map="cpu",
        min_pixels=56 * 56,
        batch_size=16,
        **arguments,
    )
    made.task_dict[TASK] = {"test": [each.pictures for each in ASKED]}
    return made


def test_answers_and_counts_are_those_on_transformers(monkeypatch):
    monkeypatch.setenv("HIPRUNE_QWEN_RETENTION", "0.223")
    monkeypatch.setenv("HIPRUNE_ALPHA", "0.2")
    on_transformers = build(MODEL)
    wanted, right = on_transformers.generate_until(asked()), on_transformers.record.as_dict()
    on_transformers.clean()
    in_vllm = build(f"{MODEL}_vllm", **ENGINE)
    try:
        found, record = in_vllm.generate_until(asked()), in_vllm.record.as_dict()
        with pytest.raises(HiPruneError, match="num_beams=2 in vLLM: expected 1"):
            in_vllm.generate_until(asked(SETTINGS | {"num_beams": 2}))
    finally:
        in_vllm.clean()
    assert found == wanted
    for name in ("pruned", "retention", "alpha", "object_layer", "images", "dtype", "prompt"):
        assert record[name] == right[name]
    assert record["visual_tokens_per_image"] == right["visual_tokens_per_image"]
    assert record["engine"] == engine_name() and "engine" not in right


def test_a_model_that_the_plugin_does_not_know_is_refused(tmp_path):
    """vLLM would serve it, and prune nothing."""
    transformers.InternVLConfig(architectures=["InternVLForConditionalGeneration"]).save_pretrained(
        tmp_path
    )
    with pytest.raises(HiPruneError, match="InternVLForConditionalGeneration in vLLM; expected"):
        get_model("hiprune_hf_vllm")(str(tmp_path), dtype="float32", device_map="cpu")
