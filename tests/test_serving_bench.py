"""The serving benchmark without vLLM: its arguments, its requests, what it says of its samples."""

import base64
import io
import json

import pytest
from PIL import Image

from hiprune import HiPruneError
from scripts.efficiency.latency.rounds import Comparison, Rounds, Row
from scripts.serving import bench, parts, report
from scripts.serving.load import Load
from scripts.serving.server import Server


def test_defaults_of_the_small_model():
    args = bench.parse(["--tiny", "--", "--port-of-nobody", "1"])
    assert args.retention == [0.334, 0.223, 0.112] and args.vllm == ["--port-of-nobody", "1"]
    assert (args.requests, args.concurrency, args.repetitions) == (32, 8, 10)
    args = bench.parse(["--tiny", "--retention", "1", "unpruned", "1.0", "--image-size", "672x336"])
    assert args.retention == [1, 1.0] and args.image_size == (672, 336)
    assert [type(each) for each in args.retention] == [int, float]  # one token, and all


@pytest.mark.parametrize(
    "argv, told",
    [
        ([], "neither of both: expected --tiny, or a checkpoint"),
        (["--tiny", "--checkpoint", "x"], "--tiny with --checkpoint 'x': expected"),
        (["--tiny", "--retention", "x"], "--retention 'x': expected tokens, a share or unpruned"),
        (["--tiny", "--retention", "1.5"], "retention=1.5: expected"),
        (["--tiny", "--requests", "0"], "--requests='0': expected an integer of at least 1"),
        (["--tiny", "--image-size", "8x8"], "--image-size='8x8': expected WxH"),
    ],
)
def test_a_wrong_argument_is_told(argv, told, capsys):
    with pytest.raises(SystemExit) as end:
        bench.parse(argv)
    assert end.value.code == 2 and told in capsys.readouterr().err


def test_settings_from_outside_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("HIPRUNE_ALPHA", "0.3")
    with pytest.raises(SystemExit):
        bench.parse(["--tiny"])
    assert "HIPRUNE_ALPHA='0.3': expected budgets, in --retention" in capsys.readouterr().err


def test_no_picture_comes_twice(tmp_path):
    load = Load(tmp_path, "nowhere", (64, 32), 4, seed=0)
    urls = []
    for name, first in (("a", 0), ("b", 3)):
        for line in load.requests(name, first, 3).read_text().splitlines():
            picture, text = json.loads(line)["content"]
            urls.append(picture["image_url"]["url"])
            assert text["text"].endswith("?")
    assert len(set(urls)) == 6
    data = base64.b64decode(urls[0].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (64, 32)


def rounds(*rates):
    """Repetitions of two servers, of so many requests a second each."""
    found = []
    for label, values in zip(("unpruned", "0.334 N"), rates, strict=True):
        samples = [
            {
                "repetition": n, "requests_per_second": rate, "ttft": 1 / rate, "tpot": 0.01,
                "ttft_alone": 0.05, "tpot_alone": 0.01, "prompt_tokens": 100.0, "kv_tokens": 129.0,
            }
            for n, rate in enumerate(values)
        ]  # fmt: skip
        found.append(Row(label, {"cache_tokens": 1024, "block": 128}, samples))
    return Rounds(found)


RECORD = {
    "title": "a model in vllm 9",
    "command": "bash scripts/bench_serving.sh --tiny",
    "settings": {"requests": 8, "concurrency": 4, "new_tokens": 4, "image_size": (64, 32)},
}


def test_ratios_are_of_runs_side_by_side(tmp_path):
    """Both servers became twice as slow half-way: the ratio is the same all through."""
    found = rounds([10.0, 5.0, 10.0], [20.0, 10.0, 20.0])
    text = report.render(RECORD, found)
    _, ratios = (line for line in text.splitlines() if line.startswith("| 0.334 N"))
    assert [cell.strip() for cell in ratios.split("|")[2:4]] == ["2.000", "0.500"]
    assert "n is below 10" in text and RECORD["command"] in text
    # 129 tokens take two blocks of 128, of which there are 8.
    assert text.splitlines()[4].split("|")[-2].strip() == "4"
    report.draw(RECORD, found, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size[0] > 1000


def test_a_server_that_ends_is_told_in_one_line(tmp_path):
    """There is no vLLM here, which the server's log says."""
    with Server("pruned", "nowhere", {"retention": 4}, [], {}, tmp_path / "log.txt") as server:
        with pytest.raises(HiPruneError, match=r"pruned: the server ended: .*vllm.*log\.txt"):
            server.wait(60)
    assert server.process.poll() is not None


def test_parts_are_of_engines_side_by_side():
    rows = []
    for label, towers in (("unpruned", (0.04, 0.08)), ("0.334 N", (0.05, 0.1))):
        samples = [
            {"repetition": n, "tower": x, "language": 0.01, "rest": 0.01, "all": x + 0.02}
            for n, x in enumerate(towers)
        ]
        rows.append(Row(label, {}, samples))
    compared = [Comparison("0.334 N", "unpruned", each) for each in parts.TITLES]
    text = parts.render(RECORD, Rounds(rows), compared)
    *_, ratios = (line for line in text.splitlines() if line.startswith("| 0.334 N"))
    assert [cell.strip() for cell in ratios.split("|")[2:4]] == ["1.250", "1.000"]
    assert "8 requests" in text
