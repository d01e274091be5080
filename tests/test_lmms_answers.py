"""lmms.answers: what a run that was cut off has answered is taken as it was, and only that."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip("lmms_eval")

from hiprune import HiPruneError
from hiprune.lmms.answers import Answers, Kept
from hiprune.lmms.base import PrunedLmms, generation

GREEDY = {"temperature": 0, "max_new_tokens": 5, "until": ["\n"]}
RED, BLUE = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")


def keys(answers, **changes):
    prompt = {"task": "pope", "context": "Is it red?", "images": [RED], "settings": GREEDY}
    return answers.key(**(prompt | changes))


def test_a_second_start_has_the_answers_of_the_first(tmp_path):
    first = Answers(tmp_path, 0, {"dtype": "float16"})
    assert first.get(keys(first)) is None
    first.keep(keys(first), Kept("ja\n, 是", 1, 64))
    second = Answers(tmp_path, 0, {"dtype": "float16"})
    assert second.get(keys(second)) == Kept("ja\n, 是", 1, 64)
    # Also where the questions are dealt out to other processes.
    assert Answers(tmp_path, 3, {"dtype": "float16"}).get(keys(second)) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "gqa"},
        {"context": "Is it Red?"},
        {"images": [BLUE]},
        {"images": []},
        {"images": [RED.convert("L")]},
        {"settings": GREEDY | {"max_new_tokens": 6}},
    ],
)
def test_another_question_is_another_key(tmp_path, changes):
    answers = Answers(tmp_path, 0, None)
    assert keys(answers, **changes) not in (keys(answers), None)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": GREEDY | {"temperature": 0.7}},
        {"settings": GREEDY | {"do_sample": True}},
        {"images": ["a video.mp4"]},
    ],
)
def test_what_is_drawn_or_no_picture_is_not_kept(tmp_path, changes):
    answers = Answers(tmp_path, 0, None)
    assert keys(answers, **changes) is None
    answers.keep(None, Kept("x", 1, 1))
    assert answers.get(None) is None
    assert keys(answers, settings=GREEDY | {"temperature": None}) is not None


def test_answers_of_other_settings_are_not_taken(tmp_path):
    first = Answers(tmp_path, 0, {"dtype": "float16"})
    first.keep(keys(first), Kept("yes", 1, 64))
    other = Answers(tmp_path, 0, {"dtype": "float32"})
    assert other.get(keys(other)) is None
    other.keep(keys(other), Kept("no", 1, 64))
    assert Answers(tmp_path, 0, {"dtype": "float32"}).get(keys(other)).text == "no"


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_that_was_cut_off_spoils_no_other(tmp_path, cut):
    first = Answers(tmp_path, 0, None)
    names = [keys(first, context=str(i)) for i in range(3)]
    for i in range(2):
        first.keep(names[i], Kept(str(i), 1, 9))
    path = tmp_path / "rank-0.jsonl"
    path.write_text(path.read_text()[:-cut])
    second = Answers(tmp_path, 0, None)
    assert second.get(names[0]) and second.get(names[1]) is None
    second.keep(names[2], Kept("2", 1, 9))
    third = Answers(tmp_path, 0, None)
    assert [third.get(name) and third.get(name).text for name in names] == ["0", None, "2"]


def test_nothing_is_kept_without_a_folder(monkeypatch):
    monkeypatch.delenv("HIPRUNE_ANSWERS", raising=False)
    answers = Answers.of_environment(0, lambda: json.dumps(object()))  # not asked
    assert keys(answers) is None


class Model(PrunedLmms):
    """Answers with its prompt; fails at the contexts that it is told to."""

    rank, world_size = 0, 1

    def __init__(self, folder, batch_size, fails=()):
        self.batch_size, self.fails, self.asked = batch_size, fails, []
        self.tokenizer = SimpleNamespace(encode=lambda text: list(text))
        self.task_dict = {"task": {"test": [RED] * 7}}
        self.accelerator = None
        self.record = SimpleNamespace(images=0, visual_tokens=0, gather=lambda accelerator: None)
        self.record.count = self.count
        self._answers = Answers(folder, 0, None)

    def count(self, images, tokens):
        self.record.images += images
        self.record.visual_tokens += tokens

    def _answer(self, contexts, visuals, settings, counted):
        self.asked += contexts
        if set(contexts) & set(self.fails):
            raise RuntimeError("out of memory")
        self.count(len(contexts), 64 * len(contexts))
        return [text.upper() for text in contexts]


def requests(contexts, settings=GREEDY):
    """As lmms-eval makes them."""
    for i, context in enumerate(contexts):
        args = (context, settings, lambda image: [image], i, "task", "test")
        yield SimpleNamespace(args=args, metadata={})


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_run_that_failed_goes_on_where_it_was(tmp_path, batch_size):
    contexts = ["a question", "b", "cc", "dddd", "eee", "ffffff", "ggggg"]
    first = Model(tmp_path, batch_size, fails=("b",))  # the shortest, which comes last
    with pytest.raises(HiPruneError, match=r"sample .*: RuntimeError: out of memory"):
        first.generate_until(list(requests(contexts)))
    second = Model(tmp_path, batch_size)
    assert second.generate_until(list(requests(contexts))) == [c.upper() for c in contexts]
    assert second.asked == ["b"]  # in a batch by itself, or the last of four
    assert (second.record.images, second.record.visual_tokens) == (7, 7 * 64)


def test_a_temperature_of_null_is_greedy():
    """Of a task's file."""
    found = generation({"temperature": None, "top_p": 0.5}, max_new_tokens=5)
    assert (found["do_sample"], found["temperature"], found["top_p"]) == (False, None, None)
