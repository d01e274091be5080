"""The Python beside LLaVA's evaluations: submission files, folder names, the paper's numbers."""

import json
import re
import sys

import openpyxl
import pytest

from hiprune import HiPruneError
from scripts.llava_eval import answers as answer_files
from scripts.llava_eval import (
    check_textvqa,
    convert_mmbench,
    convert_vqav2,
    paper_number,
    settings,
)

TABLE = """\
index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tsplit
7\tWhich one?\tlook\tred\tNone\t\t\tB\tcolour\taW1hZ2U=\tsomewhere\tdev
3\t=1+1\t\tNA\t2\t3\t4\tB\tsums\taW1hZ2U=\tsomewhere\tdev
"""


def answer(question, text):
    return json.dumps({"question_id": question, "prompt": "", "text": text}) + "\n"


class Files:
    def __init__(self, folder):
        self.folder, self.questions = folder, folder / "questions"
        self.answers, self.output = folder / "answers.jsonl", folder / "new" / "upload.xlsx"

    def convert(self, module, questions, answers, monkeypatch):
        """The exit status of the module run as a script."""
        self.questions.write_text(questions)
        self.answers.write_bytes(answers.encode("utf-8", "surrogateescape"))
        arguments = ["--questions", self.questions, "--answers", self.answers]
        arguments += ["--output", self.output]
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        return module.main()


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_mmbench(files, monkeypatch):
    answers = answer(3, "B\x07") + "\n" + answer(7, "=A")
    assert files.convert(convert_mmbench, TABLE, answers, monkeypatch) == 0
    sheet = openpyxl.load_workbook(files.output).active
    names, *rows = sheet.iter_rows(values_only=True)
    assert names == (*convert_mmbench.COLUMNS, "answer", "category", "split")
    assert rows == [
        (7, "Which one?", "red", "None", None, None, "=A", "B", "colour", "dev"),
        (3, "=1+1", "NA", "2", "3", "4", "B", "B", "sums", "dev"),
    ]
    assert sheet.cell(3, 2).data_type == sheet.cell(2, 7).data_type == "s"  # no formulas
    assert [path.name for path in files.output.parent.iterdir()] == ["upload.xlsx"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (answer(3, "B"), "no answer to 1 of the 2 questions"),
        (answer(3, "B") + answer(7, "A") + answer(8, "A"), "1 answers to questions that"),
        (answer(3, "B") + answer(3, "B"), "line 2: question_id=3 for the second time"),
        (answer(3, "B") + '{"question_id": 7, "te', "line 2: "),
        ("{}\n", "line 1: keys []; expected question_id and text"),
        (answer(3, "B") + "[1]\n", "line 2: '[1]'; expected one JSON object a line"),
        (answer(3, "B") + "7\n", "line 2: '7'; expected one JSON object a line"),
        (answer(3, "B") + answer("7", "A"), "no answer to 1 of the 2 questions"),
        (answer(3, "B") + answer([7], "A"), "line 2: question_id=[7], text='A'; expected a num"),
        (answer(3, None), "line 1: question_id=3, text=None; expected a number or name"),
        (answer(3, "B") + "\udcff\n", "line 2: 'utf-8' codec can't decode"),
    ],
)
def test_answers_that_do_not_fit(answers, message, files, monkeypatch, capsys):
    assert files.convert(convert_mmbench, TABLE, answers, monkeypatch) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{files.answers}")
    assert message in error
    assert not files.output.exists()


def test_a_file_is_never_half_written(tmp_path):
    path = tmp_path / "upload.json"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), answer_files.replacing(path) as part:
        part.write_text("half")
        assert path.read_text() == "before"
        raise ZeroDivisionError
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_that_is_not_mmbenchs(files, monkeypatch, capsys):
    assert files.convert(convert_mmbench, "index\tA\n1\tx\n", answer(1, "A"), monkeypatch) == 1
    assert "no column question, B, C, D" in capsys.readouterr().err


def test_vqav2(files, monkeypatch):
    questions = "".join(
        json.dumps({"question_id": i, "image": "", "text": ""}) + "\n" for i in "dcba"
    )
    answers = answer("b", "The Two dogs.") + answer("d", "dont, 1,000")
    assert files.convert(convert_vqav2, questions, answers, monkeypatch) == 0
    assert json.loads(files.output.read_text()) == [
        {"question_id": "d", "answer": "don't 1000"},
        {"question_id": "c", "answer": ""},
        {"question_id": "b", "answer": "2 dogs"},
        {"question_id": "a", "answer": ""},
    ]


def test_vqav2_answers_to_other_questions(files, monkeypatch, capsys):
    questions = json.dumps({"question_id": 1}) + "\n"
    assert files.convert(convert_vqav2, questions, answer(2, "x"), monkeypatch) == 1
    assert "does not have, the first is 2" in capsys.readouterr().err
    assert not files.output.exists()


ASKED = "What is it?\nReference OCR token: STOP\nAnswer with a word."
TEXTVQA_ANSWERS = [{"question_id": i, "prompt": ASKED, "text": "yes"} for i in ("im0", "im1")]
LINES = [json.dumps(line) for line in TEXTVQA_ANSWERS]


def checked(folder, monkeypatch, answers, annotations=None):
    """check_textvqa's exit status, of two questions."""
    asked = [{"question_id": f"im{i}", "text": ASKED} for i in range(2)]
    known = [{"image_id": f"im{i}", "question": "What is it?", "answers": ["yes"]} for i in (0, 1)]
    contents = {
        "questions": "".join(json.dumps(line) + "\n" for line in asked),
        "annotations": annotations or json.dumps({"data": known}),
        "answers": "".join(line + "\n" for line in answers),
    }
    arguments = ["check"]
    for name, text in contents.items():
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        arguments += [f"--{name}", str(folder / name)]
    monkeypatch.setattr(sys, "argv", arguments)
    return check_textvqa.main()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (LINES, ""),
        (LINES[::-1], ""),
        (
            [LINES[0], LINES[1][:40]],
            "answers, line 2: Unterminated string .*; expected one JSON object a line",
        ),
        ([LINES[0], "\udcff", LINES[1]], "answers, line 2: 'utf-8' codec .*; expected one J"),
        ([LINES[0], "", LINES[1]], "answers, line 2: empty; expected one JSON object a line"),
        ([LINES[0], "[]"], r"answers, line 2: '\[\]'; expected one JSON object a line"),
        (
            [json.dumps({"question_id": "im0", "text": "yes"}), LINES[1]],
            r"answers, line 1: keys \['question_id', 'text'\]; expected texts as "
            "question_id, prompt, text",
        ),
        (
            [LINES[0], LINES[1].replace('"yes"', "7")],
            "answers, line 2: keys .*; expected texts as question_id, prompt, text",
        ),
        (
            [*LINES, LINES[0]],
            "answers, line 3: question_id='im0', .*; expected a question of .*, each once",
        ),
        (
            [LINES[0].replace("What", "Who"), LINES[1]],
            "answers, line 1: question_id='im0', prompt='Who .*; expected a question of ",
        ),
        (LINES[:1], "answers: no answer to 1 questions of .*, the first is 'im1'; expected"),
    ],
)
def test_textvqas_answers_are_checked_before_they_are_scored(
    tmp_path, capsys, monkeypatch, lines, message
):
    assert checked(tmp_path, monkeypatch, lines) == (1 if message else 0)
    told = capsys.readouterr().err
    assert told.count("\n") == (1 if message else 0)
    assert re.search(message, told)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (
            '{"data": [{"image_id": "im0"}]}',
            "annotations: KeyError: 'answers'; expected TextVQA's",
        ),
        ("{", "annotations: JSONDecodeError: .*; expected TextVQA's annotations"),
        ('{"data": []}', "questions, line 1: question_id='im0'; expected a question of "),
    ],
)
def test_annotations_that_are_not_textvqas(tmp_path, capsys, monkeypatch, annotations, message):
    assert checked(tmp_path, monkeypatch, LINES, annotations) == 1
    assert re.search(message, capsys.readouterr().err)


def test_folders_name_what_changes_the_answers(monkeypatch):
    assert settings.folder("unpruned") == "unpruned"
    assert settings.folder("192") == "retention-192_alpha-0.1_layer-9"
    monkeypatch.setenv("HIPRUNE_ALPHA", "0.25")
    monkeypatch.setenv("HIPRUNE_OBJECT_LAYER", "12")
    monkeypatch.setenv("HIPRUNE_RETENTION", "nonsense")  # the budget asked for stands above it
    assert settings.folder("2880") == "retention-2880_alpha-0.25_layer-12"
    with pytest.raises(HiPruneError, match="HIPRUNE_RETENTION='2881'"):
        settings.folder("2881")


@pytest.mark.parametrize(
    ("variables", "ending"),
    [
        ({"METHOD": "random"}, "_method-random_seed-0"),
        ({"METHOD": "random", "SEED": "3"}, "_method-random_seed-3"),
        ({"METHOD": "uniform"}, "_method-uniform"),
        ({"SCORE": "cls", "BUFFER": "row"}, "_score-cls_buffer-row"),
        ({"REGISTERS": "0"}, "_registers-False"),
        ({"METHOD": "hiprune", "BUFFER": "cross", "SEED": "3"}, ""),  # the paper's method
    ],
)
def test_another_method_has_another_folder(monkeypatch, variables, ending):
    for name, value in variables.items():
        monkeypatch.setenv(f"HIPRUNE_{name}", value)
    assert settings.folder("64") == f"retention-64_alpha-0.1_layer-9{ending}"
    assert settings.folder("unpruned") == "unpruned"


@pytest.mark.parametrize(
    ("checkpoint", "budget", "column", "score"),
    [
        ("liuhaotian/llava-v1.5-7b", "unpruned", "TextVQA", "58.2"),
        ("liuhaotian/llava-v1.5-7b", "192", "TextVQA", "57.6"),
        ("liuhaotian/llava-v1.5-7b", "128", "MMB_CN", "56.4"),
        ("/models/llava-v1.5-13b", "64", "VQAv2", "70.3"),
        ("/models/llava-v1.5-13b/", "unpruned", "MMB", "67.7"),
        ("liuhaotian/llava-v1.6-vicuna-7b", "640", "MMB", "67.0"),
        ("liuhaotian/llava-v1.6-vicuna-7b", "640", "TextVQA", "-"),
        ("liuhaotian/llava-v1.6-vicuna-13b", "160", "MMB", "66.3"),
        ("liuhaotian/llava-v1.5-7b", "100", "TextVQA", "-"),
        ("llava-tiny", "192", "TextVQA", "-"),
    ],
)
def test_paper_numbers(checkpoint, budget, column, score):
    assert paper_number.paper_number(checkpoint, budget, column) == score
