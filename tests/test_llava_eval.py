"""LLaVA's own evaluations: the shell scripts, with and without a real model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forking_python import serving_here, write_python
from llava_eval_runs import (
    BENCHMARKS,
    SCRIPTS,
    TESTS,
    Fake,
    bash,
    environment,
    make_data,
    read_lines,
)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("eval data"))  # a space in the path


@pytest.fixture(scope="module")
def server():
    modules = ("llava.model.builder", "llava.eval.m4c_evaluator", "pandas", "openpyxl")
    with serving_here(*modules, "hiprune.launcher", "hiprune.models.llava") as place:
        yield place


@pytest.fixture
def fake(tmp_path, data, server):
    return Fake(tmp_path, data, server)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_help_and_wrong_arguments(benchmark):
    done = bash(benchmark, "--help")
    assert done.returncode == 0
    for name in ("HIPRUNE_RETENTION", "RETENTIONS", "CKPT", "DATA", "OUTPUT", "VENV"):
        assert name in done.stdout
    assert ("NUM_PROCESSES" in done.stdout) is (benchmark == "vqav2")
    done = bash(benchmark, "--tiny")
    assert done.returncode == 2
    assert "argument '--tiny': expected --help" in done.stderr


@pytest.mark.parametrize(
    ("benchmark", "files", "origins"),
    [
        (
            "textvqa",
            ["llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json", "train_images"],
            ["eval.zip", "textvqa.org"],
        ),
        ("mmbench", ["mmbench_dev_20230712.tsv"], ["opencompass"]),
        ("mmbench_cn", ["mmbench_dev_cn_20231003.tsv"], ["opencompass"]),
        (
            "vqav2",
            [
                "llava_vqav2_mscoco_test-dev2015.jsonl",
                "llava_vqav2_mscoco_test2015.jsonl",
                "test2015",
            ],
            ["eval.zip", "test2015.zip"],
        ),
    ],
)
def test_missing_data_is_one_message(benchmark, files, origins, tmp_path):
    """Before an environment is made or a model is loaded."""
    done = bash(benchmark, DATA=tmp_path, VENV=tmp_path / "none")
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == f"{benchmark}: data are missing (DATA={tmp_path}); expected:"
    assert lines[1::2] == [f"  {tmp_path / benchmark / name}" for name in files]
    for origin in origins:
        assert origin in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_missing_environment_is_made(fake, tmp_path, data):
    """In a copy of the repository, whose set-up puts the fake environment in place."""
    scripts = tmp_path / "repository" / "scripts" / "llava_eval"
    shutil.copytree(SCRIPTS.parent, scripts.parent, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts.parents[1] / "setup_llava.sh").write_text(
        f'echo "setup with $PYTHON"; cd /; cp -r "{fake.settings["VENV"]}" "$VENV"\n'
    )
    settings = fake.settings | {"VENV": "made here", "PYTHON": "my-python", "RETENTIONS": "64"}
    command = ["bash", str(scripts / "mmbench.sh")]
    env = environment(**settings, CKPT="llava-x")
    for asked in (True, False):
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("setup with my-python" in done.stdout) is asked
    assert (tmp_path / "made here" / "bin" / "python").exists()
    assert len(fake.calls()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"HIPRUNE_RETENTION": ""}, "HIPRUNE_RETENTION=''"),
        ({"HIPRUNE_RETENTION": "../64"}, "HIPRUNE_RETENTION='../64'"),
        ({"RETENTIONS": "192 0"}, "HIPRUNE_RETENTION='0'"),
        ({"RETENTIONS": " "}, "RETENTIONS=' '"),
        ({"HIPRUNE_ALPHA": "nan"}, "HIPRUNE_ALPHA='nan'"),
        ({"NUM_PROCESSES": "0"}, "NUM_PROCESSES='0'"),
    ],
)
def test_bad_settings(settings, message, fake):
    done, calls = fake.run("vqav2", **settings)
    assert done.returncode == 2
    assert f"{message}: expected " in done.stderr
    assert not calls
    assert not fake.output.exists()


def test_a_failed_budget_is_reported_and_taken_up_again(fake):
    """TextVQA: unpruned runs without the launcher, the others under it."""
    settings = {"RETENTIONS": "unpruned 192 64", "CKPT": "liuhaotian/llava-v1.5-7b"}
    done, calls = fake.run("textvqa", FAKE_FAIL="192", **settings)
    assert done.returncode == 1
    assert [call["retention"] for call in calls] == ["unpruned", "192", "64"]
    assert [call["pruned"] for call in calls] == [False, True, True]
    for call in calls:
        assert call["module"] == "llava.eval.model_vqa_loader"
        arguments = " ".join(call["arguments"])
        assert "--model-path liuhaotian/llava-v1.5-7b" in arguments
        assert "--conv-mode vicuna_v1 --temperature 0" in arguments
    assert "textvqa: [2/3] liuhaotian/llava-v1.5-7b, 192 -> " in done.stdout
    assert "budget 192 failed" in done.stderr
    folder = fake.output / "textvqa" / "liuhaotian__llava-v1.5-7b"
    assert [path.parent.name for path in fake.files("answers.jsonl")] == [
        "retention-64_alpha-0.1_layer-9",
        "unpruned",
    ]
    assert done.stdout.splitlines()[-3:] == [
        "unpruned   accuracy 66.67%; the paper's: 58.2",
        "192        FAILED (reason above)",
        "64         accuracy 66.67%; the paper's: 54.9",
    ]

    done, calls = fake.run("textvqa", **settings)
    assert done.returncode == 0, done.stderr
    assert [call["retention"] for call in calls] == ["192"]
    assert "kept: " in done.stdout
    assert done.stdout.splitlines()[-2] == "192        accuracy 66.67%; the paper's: 57.6"
    assert not fake.files("*.part")
    assert len(read_lines(folder / "retention-192_alpha-0.1_layer-9" / "answers.jsonl")) == 3


def test_a_bad_line_among_textvqas_answers_is_one_line(fake):
    folder = fake.output / "textvqa" / "liuhaotian__llava-v1.5-7b" / "unpruned"
    folder.mkdir(parents=True)
    (folder / "answers.jsonl").write_text('{"question_id": "t0", "pro')
    done, calls = fake.run("textvqa", RETENTIONS="unpruned")
    assert done.returncode == 1 and not calls
    first, *others = done.stderr.splitlines()
    assert first.startswith(f"{folder / 'answers.jsonl'}, line 1: Unterminated string")
    assert others == ["textvqa: budget unpruned failed"]
    assert not fake.files("score.txt*")


def test_without_a_gpu_it_says_so(fake):
    done, calls = fake.run("textvqa", FAKE_NO_GPU=1, CUDA_VISIBLE_DEVICES="", RETENTIONS="64")
    assert calls == []
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("no CUDA GPU, which the modules of llava.eval need;")


def test_other_settings_are_other_runs(fake):
    first, _ = fake.run("mmbench", HIPRUNE_RETENTION="64")
    assert first.returncode == 0, first.stderr
    for changed in ({"HIPRUNE_ALPHA": "0.2"}, {"HIPRUNE_OBJECT_LAYER": "3"}, {"CKPT": "a/llava"}):
        done, calls = fake.run("mmbench", HIPRUNE_RETENTION="64", **changed)
        assert done.returncode == 0, done.stderr
        assert len(calls) == 1
    done, calls = fake.run("mmbench", HIPRUNE_RETENTION="64", HIPRUNE_ALPHA="0.10")
    assert not calls
    assert len(fake.files("answers.jsonl")) == len(fake.files("*.xlsx")) == 4
    assert f"submit {fake.output}/mmbench/" in done.stdout
    assert "opencompass" in done.stdout
    assert "the paper's score: 59.5" in done.stdout


def test_vqav2_in_chunks(fake, data):
    """A chunk a GPU; finished ones are kept; the merged answers are those of one process."""
    settings = {"HIPRUNE_RETENTION": 64, "NUM_PROCESSES": 3, "CUDA_VISIBLE_DEVICES": "5,7"}
    done, calls = fake.run("vqav2", FAKE_FAIL_CHUNK="1", **settings)
    assert done.returncode == 1
    assert sorted((c["chunk"], c["gpu"]) for c in calls) == [(0, "5"), (1, "7"), (2, "5")]
    assert "chunk 2 of 3 failed" in done.stderr
    assert "out of memory, say" in done.stderr
    assert not fake.files("answers.jsonl")

    done, calls = fake.run("vqav2", **settings)
    assert done.returncode == 0, done.stderr
    assert [(c["chunk"], c["gpu"]) for c in calls] == [(1, "7")]
    (answers,) = fake.files("answers.jsonl")
    assert [line["question_id"] for line in read_lines(answers)] == [101, 102, 103, 104, 105]
    assert not fake.files("chunk-*.jsonl")
    (upload,) = fake.files("*.json")
    assert json.loads(upload.read_text()) == [
        {"question_id": question, "answer": "yes" if 101 <= question <= 105 else ""}
        for question in range(100, 107)
    ]
    assert f"submit {upload} to https://eval.ai/" in done.stdout

    # Four processes share five questions: chunks of two, of which there are three.
    done, calls = fake.run("vqav2", RETENTIONS="unpruned", NUM_PROCESSES=4)
    assert done.returncode == 0, done.stderr
    assert sorted((c["chunk"], c["gpu"]) for c in calls) == [(0, "0"), (1, "1"), (2, "2")]


@pytest.mark.parametrize(
    ("send", "number", "status"),
    [(os.killpg, signal.SIGINT, 130), (os.kill, signal.SIGTERM, 143)],
    ids=["Ctrl-C", "kill"],
)
def test_an_end_from_outside_ends_the_chunks_too(send, number, status, fake):
    """A terminal's Ctrl-C goes to the whole process group, a kill to the script alone."""
    settings = environment(**fake.settings, NUM_PROCESSES=2, RETENTIONS="64 32", FAKE_SLEEP=120)
    command = ["bash", str(SCRIPTS / "vqav2.sh")]
    script = subprocess.Popen(
        command,
        env=settings,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A parent may have it ignored, which a script then cannot change.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait_for(lambda: len(fake.calls()) == 2)
        send(script.pid, number)
        assert script.wait(timeout=20) == status
    finally:
        script.kill()
    wait_for(lambda: not any(is_running(call["pid"]) for call in fake.calls()))
    assert not fake.files("answers.jsonl")


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A killed process stays as a zombie until its adoptive parent looks after it.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def venv(server, tmp_path):
    """Its Python is a fork of a warm one, but where a model is asked about MMBench."""
    forking, python = tmp_path / "forking-python", tmp_path / "venv" / "bin" / "python"
    write_python(forking, server)
    python.parent.mkdir(parents=True)
    anew = f'case "$*" in *model_vqa_mmbench*) exec "{sys.executable}" "$@" ;; esac'
    python.write_text(f'#!/bin/sh\n{anew}\nexec "{forking}" "$@"\n')
    python.chmod(0o755)
    return python.parents[1]


@pytest.mark.parametrize("benchmark", ["textvqa", "mmbench_cn", "vqav2"])
def test_the_packages_own_modules_run(benchmark, tiny_llava, data, venv, tmp_path):
    """From the script to the file to submit, with a real (tiny) model under the launcher."""
    done = bash(
        benchmark,
        PYTHONPATH=TESTS / "cuda_on_cpu",
        VENV=venv,
        CKPT=tiny_llava,
        DATA=data,
        OUTPUT=tmp_path,
        RETENTIONS="unpruned 16" if benchmark == "textvqa" else "16",
        NUM_PROCESSES=2,
        CUDA_VISIBLE_DEVICES="",
        HIPRUNE_OBJECT_LAYER=3,  # the tiny tower has six
        OMP_NUM_THREADS=1,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = next(tmp_path.rglob("retention-16_alpha-0.1_layer-3"))
    answers = read_lines(folder / "answers.jsonl")
    asked = {"textvqa": ["t0", "t1", "t2"], "mmbench_cn": [0, 10, 20], "vqav2": range(101, 106)}
    assert [answer["question_id"] for answer in answers] == list(asked[benchmark])
    assert all(answer["text"] in ("Yes", "No") for answer in answers)
    logs = done.stderr + "".join(path.read_text() for path in folder.glob("*.log"))
    pruned = "hiprune: LlavaLlamaForCausalLM (llava) keeps N'=16 visual tokens per image"
    # One process a budget, none of them for "unpruned"; VQAv2 has two.
    assert logs.count(pruned) == (2 if benchmark == "vqav2" else 1)
    product = {"textvqa": "score.txt", "mmbench_cn": "*.xlsx", "vqav2": "*.json"}[benchmark]
    assert len(list(folder.glob(product))) == 1
    if benchmark == "textvqa":
        right = [a["text"] == b for a, b in zip(answers, ["Yes", "Yes", "No"], strict=True)]
        share = 100 * sum(right) / 3
        assert done.stdout.splitlines()[-1] == f"16         accuracy {share:.2f}%; the paper's: -"
