"""lmms-eval's model `llava_hf_hiprune`: answers in any batch, the record, the padded image."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="needs the environment .venv-qwen")

from lmms_eval.loggers import EvaluationTracker
from lmms_eval.models import get_model
from lmms_eval.models.simple.llava_hf import LlavaHf
from test_lmms_qwen import DOCS, SIZES, TASK, requests, to_visual

from hiprune import HiPruneError


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    from random_checkpoint import make_checkpoint

    return {
        family: str(
            make_checkpoint(
                tmp_path_factory.mktemp("hf") / family, family, image_size=84, layers=10
            )
        )
        for family in ("llava_hf", "llava_next_hf")
    }


@pytest.fixture(autouse=True)
def _tracker_as_it_was(monkeypatch):
    original = EvaluationTracker.save_results_aggregated
    monkeypatch.setattr(EvaluationTracker, "save_results_aggregated", original)


def prepared(model):
    model.task_dict = {TASK: {"test": DOCS}}
    torch.manual_seed(0)  # a head that says more than Yes and No
    torch.nn.init.normal_(model.model.lm_head.weight)
    return model


@pytest.fixture
def build(checkpoints, monkeypatch):
    monkeypatch.setenv("HIPRUNE_RETENTION", "15")

    def make(family="llava_hf", **arguments):
        arguments = {"device_map": "cpu", "dtype": "float32", **arguments}
        model = get_model("llava_hf_hiprune")
        return prepared(model(pretrained=checkpoints[family], **arguments))

    return make


def test_unpruned_answers_are_those_of_the_stock_model(checkpoints, build):
    stock = LlavaHf(
        pretrained=checkpoints["llava_hf"], device="cpu", device_map="cpu", dtype="float32"
    )
    # The stock class crops where the original pads, and has no inputs of its own for a question
    # without an image.
    asked = [request for request in requests() if DOCS[request.arguments[3]]["pictures"]]
    expected = prepared(stock).generate_until(asked)
    assert build(prune=False, pad=False).generate_until(asked) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("family", ["llava_hf", "llava_next_hf"])
@pytest.mark.parametrize("prune", [True, False])
def test_a_batch_gives_the_answers_of_its_prompts(build, family, prune):
    one_by_one = build(family, prune=prune).generate_until(requests())
    assert build(family, prune=prune, batch_size=4).generate_until(requests()) == one_by_one


@pytest.mark.parametrize("family", ["llava_hf", "llava_next_hf"])
def test_the_record_counts_the_tokens_that_reach_the_language_model(build, family):
    for batch_size in (1, 4):
        model = build(family, batch_size=batch_size)
        model.generate_until(requests())
        record = model.record.as_dict()
        # As deep in the 10 layers of this tower as 9 in 24.
        assert (record["images"], record["retention"], record["object_layer"]) == (4, 15, 4)
        assert record["family"] == family.removesuffix("_hf")
        if family == "llava_hf":
            assert record["visual_tokens_per_image"] == 15
        else:  # int(N' / V) per view
            assert 12 <= record["visual_tokens_per_image"] <= 15


def test_images_are_padded_for_llava_1_5_alone(build):
    (image,) = to_visual(DOCS[0])
    padded = build()._image(image)
    assert padded.size == (max(SIZES[0]),) * 2
    assert build(pad=False)._image(image).size == SIZES[0]
    assert build("llava_next_hf")._image(image).size == SIZES[0]
    assert build().record.as_dict()["pad"] is True


def test_bad_arguments(build):
    with pytest.raises(HiPruneError, match="model_args: max_frames_num; expected some of"):
        build(max_frames_num=2)
