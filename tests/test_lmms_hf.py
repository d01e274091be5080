"""lmms-eval's model `hiprune_hf`: any registered family, by its chat template; and what a bench
script makes of a checkpoint."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("transformers", minversion="5.17", reason="needs the environment .venv-qwen")

from bench_in_process import evaluate
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.models import get_model
from test_lmms_qwen import DOCS, PIXELS, TASK, to_visual
from test_lmms_qwen import requests as simple_requests

from hiprune import HiPruneError
from hiprune.config import FAMILIES, Family
from hiprune.lmms import hf
from hiprune.lmms.checkpoint import Description, describe
from scripts.bench import checkpoint as bench_checkpoint
from scripts.bench.settings import read_settings
from scripts.benchmarks import ASSETS, BENCHMARKS
from scripts.tiny.task import make_task

CHECKPOINTS = ("llava_hf", "llava_next_hf", "qwen2_5_vl")
ASSET = {"llava_hf": "llava-1.5-tiny", "llava_next_hf": "llava-v1.6-tiny"}
ASSET["qwen2_5_vl"] = "qwen2.5-vl-tiny"


def to_messages(doc):
    """Two turns where there are two pictures, so that each has its own place."""
    parts = [{"type": "image", "url": image} for image in to_visual(doc)]
    if len(parts) < 2:
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "Is it a cat?"}]}]
    first = {"role": "user", "content": [parts[0], {"type": "text", "text": "Is it a cat?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "No"}]}
    second = {"role": "user", "content": [{"type": "text", "text": "And this:"}, parts[1]]}
    return [first, answer, second]


def requests(to_messages=to_messages):
    found = simple_requests()
    for request in found:
        context, settings, _, *where = request.arguments
        request.arguments = (context, to_messages, settings, *where)
    return found


@pytest.fixture(autouse=True)
def _tracker_as_it_was(monkeypatch):
    original = EvaluationTracker.save_results_aggregated
    monkeypatch.setattr(EvaluationTracker, "save_results_aggregated", original)


@pytest.fixture
def build(monkeypatch):
    monkeypatch.setenv("HIPRUNE_RETENTION", "15")

    def make(name, **arguments):
        arguments = {"device_map": "cpu", "dtype": "float32", **arguments}
        arguments |= PIXELS if name == "qwen2_5_vl" else {}
        model = get_model("hiprune_hf")(pretrained=str(ASSETS / ASSET[name]), **arguments)
        model.task_dict = {TASK: {"test": DOCS}}
        return model

    return make


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_unpruned_answers_are_those_of_the_model_by_hand(build, name):
    model = build(name, prune=False, batch_size=2)
    processor, expected = model.processor, []
    for doc in DOCS:
        conversation = [
            {
                **turn,
                "content": [{k: v for k, v in p.items() if k != "url"} for p in turn["content"]],
            }
            for turn in to_messages(doc)
        ]
        text = processor.apply_chat_template(conversation, add_generation_prompt=True)
        inputs = processor(text=text, images=to_visual(doc) or None, return_tensors="pt")
        ids = model.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        expected.append(answer)
    assert model.generate_until(requests()) == expected
    assert all(expected)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_pruned_batches_and_their_record(build, name):
    one_by_one, batch = build(name), build(name, batch_size=4)
    assert batch.generate_until(requests()) == one_by_one.generate_until(requests())
    for model in (one_by_one, batch):
        record = model.record.as_dict()
        assert record["images"] == 4 and record["family"] == name.removesuffix("_hf")
        tokens = record["visual_tokens_per_image"]
        if name == "llava_hf":
            assert tokens == 15
        elif name == "llava_next_hf":  # int(N' / V) per view
            assert 12 <= tokens <= 15
        else:
            whole = build(name, prune=False)
            whole.generate_until(requests())
            assert abs(tokens - 0.334 * whole.record.as_dict()["visual_tokens_per_image"]) <= 0.5


def test_what_was_answered_is_not_asked_again(build, tmp_path, monkeypatch):
    monkeypatch.setenv("HIPRUNE_ANSWERS", str(tmp_path))
    expected = build("llava_hf").generate_until(requests())
    again = build("llava_hf")
    monkeypatch.setattr(again, "_answer", None)
    assert again.generate_until(requests()) == expected
    with pytest.raises(HiPruneError, match="sample 0: TypeError"):  # another conversation
        again.generate_until(asking({"type": "image", "url": to_visual(DOCS[0])[0]}))


@cache
def video(folder: Path) -> str:
    """Ten grey frames, each brighter."""
    import av
    import numpy as np

    path = str(folder / "grey.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        for i in range(10):
            picture = np.full((84, 112, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def asking(*parts):
    content = [*parts, {"type": "text", "text": "What moves?"}]
    return requests(lambda doc: [{"role": "user", "content": content}])[:1]


def test_a_videos_frames_are_pruned(build, tmp_path):
    part = {"type": "video", "url": video(tmp_path)}
    whole, pruned = (
        build("qwen2_5_vl", prune=False, max_num_frames=4),
        build("qwen2_5_vl", max_num_frames=4),
    )
    frames, _ = whole._frames(part["url"])
    levels = [float(frame.mean()) for frame in frames]
    assert len(levels) == 4 and levels == sorted(levels)
    assert levels == pytest.approx([0, 40, 100, 140], abs=6)
    for model in (whole, pruned):
        model.generate_until(asking(part))
    tokens = [model.record.visual_tokens for model in (whole, pruned)]
    assert tokens[0] > 8 and abs(tokens[1] - 0.334 * tokens[0]) <= 2
    assert pruned.record.images == 1


def test_what_it_does_not_take_is_named(build, tmp_path, monkeypatch):
    model = build("llava_hf", system_prompt="Be short.")
    assert "Be short." in model._text(*model._ask("", to_messages, DOCS[0]))
    for part, message in (
        ({"type": "video", "url": "a.mp4"}, "visual of type str: expected images .PIL.; videos"),
        ({"type": "audio", "url": "a.wav"}, "content of type 'audio': expected images, videos"),
    ):
        with pytest.raises(HiPruneError, match=f"task {TASK}, sample 0: HiPruneError: {message}"):
            model.generate_until(asking(part))
    with pytest.raises(HiPruneError, match="model_args: fps; expected some of pretrained, rev"):
        build("llava_hf", fps=2)
    model.tokenizer.chat_template = model.processor.chat_template = None
    with pytest.raises(HiPruneError, match=r"llava-1\.5-tiny': no chat template; expected one, or"):
        model._template()


@pytest.mark.parametrize(
    ("model", "asset", "family"),
    [
        ("qwen2_5_vl_hiprune", "llava-1.5-tiny", "llava"),
        ("llava_hf_hiprune", "qwen2.5-vl-tiny", "qwen2_5_vl"),
    ],
)
def test_another_familys_checkpoint_is_for_hiprune_hf(model, asset, family, tmp_path):
    """Told by the configuration alone: no weights lie here."""
    (tmp_path / "config.json").write_bytes((ASSETS / asset / "config.json").read_bytes())
    expected = f"^pretrained='{tmp_path}': a checkpoint of {family}; expected .*model hiprune_hf"
    with pytest.raises(HiPruneError, match=expected):
        get_model(model)(pretrained=str(tmp_path), device_map="cpu", dtype="float32")


def test_the_small_model_through_lmms_eval(tmp_path):
    folder = make_task(tmp_path / "task", "llava", scenes=2, seed=7)
    arguments = f"pretrained={ASSETS / 'llava-1.5-tiny'},device_map=cpu,dtype=float32"
    command = ["lmms_eval", "--model", "hiprune_hf", "--model_args", arguments]
    command += ["--tasks", "hiprune_tiny", "--include_path", str(folder), "--log_samples"]
    command += ["--output_path", str(tmp_path / "out")]
    assert evaluate(command, {"HIPRUNE_RETENTION": "48"}, tmp_path / "log") == 0
    (path,) = (tmp_path / "out").rglob("2*_results.json")
    record = json.loads(path.read_text())["hiprune"]
    assert (record["images"], record["visual_tokens_per_image"]) == (10, 48)
    (path,) = (tmp_path / "out").rglob("*_samples_*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(line["filtered_resps"] == line["target"] for line in lines) >= 8


@pytest.mark.parametrize(
    ("asset", "family", "layers", "tokens"),
    [
        ("llava-1.5-tiny", "llava", 8, 144),
        ("llava-v1.6-tiny", "llava_next", 8, 720),
        ("qwen2.5-vl-tiny", "qwen2_5_vl", 8, None),
    ],
)
def test_a_checkpoint_is_described_by_its_configuration(tmp_path, asset, family, layers, tokens):
    for name in ("config.json",):  # and nothing else
        (tmp_path / name).write_bytes((ASSETS / asset / name).read_bytes())
    found = describe(str(tmp_path))
    assert (found.family.name, found.layers, found.tokens) == (family, layers, tokens)


def test_checkpoints_that_are_of_no_family(tmp_path):
    with pytest.raises(HiPruneError, match=r"checkpoint='\S*/none': no such folder; expected"):
        describe(str(tmp_path / "none"))
    config = {"model_type": "bert", "architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = "architectures BertModel; expected one of .*LlavaForConditionalGeneration, "
    with pytest.raises(HiPruneError, match=expected):
        describe(str(tmp_path))
    with pytest.raises(HiPruneError, match=f"^CKPT='{tmp_path}': architectures BertModel"):
        read_settings(BENCHMARKS["qwen2_5_vl"], False, {"CKPT": str(tmp_path)})


def test_no_family_is_named_in_the_one_class():
    source = Path(hf.__file__).read_text()
    assert [name for name in FAMILIES if name in source.lower()] == []


@pytest.mark.parametrize("benchmark", ["qwen2_5_vl", "llava_hf", "llava_next_hf"])
@pytest.mark.parametrize(
    ("asset", "model", "budgets", "layer"),
    [
        ("llava-1.5-tiny", "llava_hf_hiprune", ("unpruned", "48", "32", "16"), 3),
        ("llava-v1.6-tiny", "llava_hf_hiprune", ("unpruned", "160", "80", "40"), 3),
        ("qwen2.5-vl-tiny", "qwen2_5_vl_hiprune", ("unpruned", "0.334", "0.223", "0.112"), 4),
    ],
)
def test_a_bench_script_takes_any_familys_checkpoint(benchmark, asset, model, budgets, layer):
    given = BENCHMARKS[benchmark]
    found = read_settings(given, False, {"CKPT": str(ASSETS / asset)})
    own = describe(str(ASSETS / asset)).family
    assert found.benchmark.family == own.name and found.benchmark.model == model
    assert found.benchmark.retention_variable == own.retention_variable
    assert (found.budgets, found.config.object_layer, found.object_layer) == (budgets, layer, layer)
    assert found.tasks == given.tasks  # the script's
    assert ("pad" in found.model_args) is (asset == "llava-1.5-tiny")


def test_tiny_with_another_familys_checkpoint_is_refused():
    """Its budget would go by a variable that the checkpoint's family does not read."""
    qwen, llava = ({"CKPT": str(ASSETS / n)} for n in ("qwen2.5-vl-tiny", "llava-1.5-tiny"))
    for benchmark, own, other in (("qwen2_5_vl", qwen, llava), ("llava_hf", llava, qwen)):
        assert read_settings(BENCHMARKS[benchmark], True, own).checkpoint == own["CKPT"]
        expected = r"^CKPT='\S*-tiny': a checkpoint of '\w*'; expected with --tiny one of"
        with pytest.raises(HiPruneError, match=expected):
            read_settings(BENCHMARKS[benchmark], True, other)


@pytest.mark.parametrize(
    ("retention", "most", "tokens", "budgets"),
    [
        (0.334, 1.0, None, ("unpruned", "0.333", "0.222", "0.111")),
        (64, 720, None, ("unpruned", "240", "160", "80")),
        (64, 720, 72, ("unpruned", "24", "16", "8")),
    ],
)
def test_a_family_without_a_benchmark_runs_as_hiprune_hf(
    monkeypatch, retention, most, tokens, budgets
):
    family = Family("other", "HIPRUNE_OTHER_RETENTION", retention, most, 8, 24)
    monkeypatch.setitem(FAMILIES, "other", family)
    monkeypatch.setattr(bench_checkpoint, "describe", lambda _: Description(family, 12, tokens))
    found = read_settings(BENCHMARKS["qwen2_5_vl"], False, {"CKPT": "its/name"})
    assert found.benchmark.model == "hiprune_hf"
    assert found.benchmark.retention_variable == "HIPRUNE_OTHER_RETENTION"
    assert (found.budgets, found.config.object_layer) == (budgets, 4)
    assert found.model_args["attn_implementation"] == "sdpa"
    assert found.tasks == BENCHMARKS["qwen2_5_vl"].tasks
