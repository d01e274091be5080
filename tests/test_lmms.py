"""lmms-eval's model `llava_hiprune`: the stock model's answers in any batch; loud failures."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

pytest.importorskip("llava", reason="the llava package lives in .venv-llava alone")

from llava_models import TOKENS, picture
from lmms_eval.api.instance import Instance
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.models import get_model
from lmms_eval.models.simple.llava import Llava

from hiprune import HiPruneError
from hiprune.handle import STATE

TASK = "questions"
# Pictures of each question: several sizes, one question without a picture, one with two.
DOCS = [{"pictures": [0]}, {"pictures": []}, {"pictures": [1, 2]}, {"pictures": [3]},
        {"pictures": [4]}, {"pictures": [5]}]  # fmt: skip
SETTINGS = {"max_new_tokens": 5, "temperature": 0, "top_p": None, "num_beams": 1}


def to_visual(doc):
    return [picture(index) for index in doc["pictures"]]


def requests(docs=DOCS, to_visual=to_visual, padding_last=False):
    found = []
    for index in range(len(docs)):
        question = "Is there a cat in the image? " + "Really? " * (index % 3)
        arguments = (question, dict(SETTINGS), to_visual, index, TASK, "test")
        metadata = {"task": TASK, "doc_id": index, "repeats": 1}
        if padding_last and index == len(docs) - 1:
            metadata["__padding_only__"] = True
        found.append(
            Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata)
        )
    return found


@pytest.fixture(autouse=True)
def _tracker_as_it_was(monkeypatch):
    """Building our model wraps a method of lmms-eval until the results are written."""
    original = EvaluationTracker.save_results_aggregated
    monkeypatch.setattr(EvaluationTracker, "save_results_aggregated", original)


@pytest.fixture
def build(tiny_llava, tiny_llava_next, monkeypatch):
    monkeypatch.setenv("HIPRUNE_OBJECT_LAYER", "3")
    monkeypatch.setenv("HIPRUNE_RETENTION", "15")
    paths = {"llava": tiny_llava, "llava_next": tiny_llava_next}

    def make(family="llava", **arguments):
        arguments = {"device_map": "cpu", "dtype": "float32", **arguments}
        model = get_model("llava_hiprune")(pretrained=str(paths[family]), **arguments)
        model.task_dict = {TASK: {"test": DOCS}}
        return model

    make.paths = paths
    return make


def random_answers(model):
    """A head that says more than Yes and No, so that equal answers say something."""
    torch.manual_seed(0)
    torch.nn.init.normal_(model.model.lm_head.weight)
    return model


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_unpruned_answers_are_those_of_the_stock_model(build, family):
    stock = Llava(pretrained=str(build.paths[family]), device="cpu", device_map="auto")
    # Its first try at loading fails half way, which leaves float16 the default of all of torch.
    torch.set_default_dtype(torch.float32)
    stock.task_dict = {TASK: {"test": DOCS}}
    expected = random_answers(stock).generate_until(requests())
    ours = random_answers(build(family, prune=False, dtype="float16", device_map="cpu"))
    assert ours.generate_until(requests()) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("prune", [True, False])
def test_a_batch_gives_the_answers_of_its_prompts(build, family, prune):
    one_by_one = random_answers(build(family, prune=prune)).generate_until(requests())
    for batch_size in (2, 6):
        model = random_answers(build(family, prune=prune, batch_size=batch_size))
        assert model.generate_until(requests()) == one_by_one


@pytest.mark.parametrize(
    ("family", "tokens"), [("llava", 6 * 15), ("llava_next", 5 * 15 + 4 * (15 // 4))]
)
def test_the_record_counts_the_tokens_that_reach_the_language_model(build, family, tokens):
    for batch_size in (1, 3):
        model = build(family, batch_size=batch_size)
        model.generate_until(requests())
        record = model.record.as_dict()
        assert (record["images"], model.record.total) == (6, (6, tokens))
        assert record["visual_tokens_per_image"] == tokens / 6
    assert (record["retention"], record["alpha"], record["object_layer"]) == (15, 0.1, 3)
    assert record["family"] == family and record["pruned"] is True
    assert record["versions"]["transformers"] == "4.37.2"
    # What decides pixels, too.
    assert record["versions"].keys() >= {"python", "torch", "pillow", "libjpeg", "numpy"}
    assert record["machine"]


def test_the_record_of_an_unpruned_run_and_of_beams(build):
    model = build(prune=False)
    model.generate_until(requests())
    assert model.record.as_dict()["visual_tokens_per_image"] == TOKENS
    assert model.record.as_dict()["retention"] is None
    model = build()
    beams = requests()
    for request in beams:
        request.arguments[1]["num_beams"] = 2
    model.generate_until(beams)
    assert model.record.as_dict()["visual_tokens_per_image"] == 15


def test_repeated_requests_that_even_out_processes_are_not_counted(build):
    model = build()
    model.generate_until(requests(padding_last=True))
    assert model.record.images == 5


def test_the_results_file_holds_the_record_once(build, tmp_path):
    model = build()
    model.generate_until(requests())
    tracker = EvaluationTracker(output_path=str(tmp_path))
    tracker.general_config_tracker.log_experiment_args(
        model_source="llava_hiprune", model_args="", system_instruction=None,
        chat_template=None, fewshot_as_multiturn=False,
    )  # fmt: skip
    for results in ({"results": {}}, {"results": {}}):
        tracker.save_results_aggregated(results=results, samples=None, datetime_str="now")
        if "hiprune" in results:
            assert results["hiprune"]["images"] == 6
    assert "hiprune" not in results, "the second results are not this model's"


@pytest.mark.parametrize("batch_size", [1, 6])
def test_an_exception_ends_the_run_and_names_the_sample(build, batch_size):
    model = build(batch_size=batch_size)

    def broken(doc):
        if doc["pictures"] == [3]:
            raise OSError("truncated file")
        return to_visual(doc)

    with pytest.raises(HiPruneError, match=rf"task {TASK}, sample .*3.*: OSError: truncated file"):
        model.generate_until(requests(to_visual=broken))


def test_an_exception_in_generation_names_the_sample(build, monkeypatch):
    model = build()

    def fail(*args, **kwargs):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(model._model, "generate", fail)
    with pytest.raises(HiPruneError, match=r"sample \d+: RuntimeError: CUDA out of memory"):
        model.generate_until(requests())
    # Of several processes the others wait at a barrier: this one has to end with a status.
    model._world_size = 2
    with pytest.raises(SystemExit, match=r"sample \d+: RuntimeError"):
        model.generate_until(requests())


def test_clean_gives_the_model_back_and_lets_it_go(build):
    model = build()
    inner = model._model
    assert STATE in vars(inner)
    model.clean()
    assert STATE not in vars(inner)
    gone = weakref.ref(inner)
    del inner
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"retension": 64}, "model_args: retension; expected"),
        ({"dtype": "int8"}, "dtype='int8': expected float16, bfloat16, float32"),
        ({"prune": "maybe"}, "prune='maybe': expected True or False"),
        ({"customized_config": "a.json"}, "customized_config='a.json'"),
    ],
)
def test_bad_arguments(build, arguments, message):
    with pytest.raises(HiPruneError, match=message):
        build(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_the_default_device_is_refused_where_there_is_none(build):
    with pytest.raises(HiPruneError, match="no CUDA device is available"):
        build(device_map="cuda:0")


def test_a_bad_variable_ends_the_run(build, monkeypatch):
    monkeypatch.setenv("HIPRUNE_RETENTION", "577")
    with pytest.raises(HiPruneError, match="HIPRUNE_RETENTION='577'"):
        build()
