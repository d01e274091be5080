"""lmms-eval's model `qwen2_5_vl_hiprune`: the stock model's answers in any batch; its record."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="needs the environment .venv-qwen")

from lmms_eval.api.instance import Instance
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.models import get_model
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL
from PIL import Image

from hiprune import HiPruneError

TASK = "questions"
SIZES = [(160, 120), (200, 60), (90, 170)]
DOCS = [{"pictures": [0]}, {"pictures": []}, {"pictures": [1, 2]}, {"pictures": [2]}]
PIXELS = {"min_pixels": 28 * 28 * 9, "max_pixels": 28 * 28 * 36}


def to_visual(doc):
    found = []
    for index in doc["pictures"]:
        noise = torch.Generator().manual_seed(index)
        coarse = torch.randint(0, 256, (5, 5, 3), generator=noise, dtype=torch.uint8).numpy()
        found.append(Image.fromarray(coarse).resize(SIZES[index], Image.BICUBIC))
    return found


def requests(to_visual=to_visual):
    settings = {"max_new_tokens": 4, "temperature": 0, "top_p": None, "num_beams": 1}
    return [
        Instance(
            request_type="generate_until",
            arguments=(f"Is there a cat? {'Really? ' * i}", settings, to_visual, i, TASK, "test"),
            idx=0,
            metadata={"task": TASK, "doc_id": i, "repeats": 1},
        )
        for i in range(len(DOCS))
    ]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    from random_checkpoint import make_checkpoint

    return str(make_checkpoint(tmp_path_factory.mktemp("qwen") / "tiny", "qwen2_5_vl"))


@pytest.fixture(autouse=True)
def _tracker_as_it_was(monkeypatch):
    original = EvaluationTracker.save_results_aggregated
    monkeypatch.setattr(EvaluationTracker, "save_results_aggregated", original)


def prepared(model):
    model.task_dict = {TASK: {"test": DOCS}}
    torch.manual_seed(0)  # a head that says more than Yes and No
    torch.nn.init.normal_(model.model.lm_head.weight)
    model.model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def build(checkpoint):
    def make(**arguments):
        arguments = {"device_map": "cpu", "dtype": "float32", **PIXELS, **arguments}
        return prepared(get_model("qwen2_5_vl_hiprune")(pretrained=checkpoint, **arguments))

    return make


def test_unpruned_answers_are_those_of_the_stock_model(checkpoint, build):
    stock = prepared(Qwen2_5_VL(pretrained=checkpoint, device="cpu", device_map="cpu", **PIXELS))
    expected = stock.generate_until(requests())
    assert build(prune=False, dtype="bfloat16").generate_until(requests()) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("prune", [True, False])
def test_a_batch_gives_the_answers_of_its_prompts(build, prune):
    one_by_one = build(prune=prune).generate_until(requests())
    assert build(prune=prune, batch_size=4).generate_until(requests()) == one_by_one


def test_the_record_counts_the_tokens_that_reach_the_language_model(build, monkeypatch):
    monkeypatch.setenv("HIPRUNE_QWEN_RETENTION", "0.334")
    for batch_size in (1, 4):
        whole = build(prune=False, batch_size=batch_size)
        whole.generate_until(requests())
        pruned = build(batch_size=batch_size)
        pruned.generate_until(requests())
        record = pruned.record.as_dict()
        assert (record["images"], record["retention"], record["object_layer"]) == (4, 0.334, 16)
        assert record["family"] == "qwen2_5_vl" and record["pruned"] is True
        # Four images: rounding each to whole tokens is at most half a token off.
        assert abs(pruned.record.visual_tokens - 0.334 * whole.record.visual_tokens) <= 2
        assert whole.record.as_dict()["retention"] is None


def test_an_exception_ends_the_run_and_names_the_sample(build):
    def broken(doc):
        if doc["pictures"] == [1, 2]:
            raise OSError("truncated file")
        return to_visual(doc)

    with pytest.raises(HiPruneError, match=f"task {TASK}, sample 2: OSError: truncated file"):
        build().generate_until(requests(broken))
    with pytest.raises(HiPruneError, match="sample 0: HiPruneError: visual of type str: expected"):
        build().generate_until(requests(lambda doc: ["a.mp4"] if doc["pictures"] == [0] else []))


def test_bad_arguments(build):
    with pytest.raises(HiPruneError, match="model_args: fps; expected some of"):
        build(fps=2)
    with pytest.raises(HiPruneError, match="dtype='int8': expected"):
        build(dtype="int8")
