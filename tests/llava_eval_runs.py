"""What the tests of LLaVA's own evaluations share: made-up data, and runs of the scripts."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

TESTS = Path(__file__).parent
SCRIPTS = TESTS.parent / "scripts" / "llava_eval"
SPLITS = {"mmbench": "mmbench_dev_20230712", "mmbench_cn": "mmbench_dev_cn_20231003"}
BENCHMARKS = ("textvqa", *SPLITS, "vqav2")
PROMPT = "What does the sign say?\nReference OCR token: STOP\nAnswer the question using a word."


def environment(**settings):
    """The process's variables with only these of ours."""
    ours = ("HIPRUNE_", "FAKE_")
    names = {"CKPT", "DATA", "OUTPUT", "RETENTIONS", "VENV", "NUM_PROCESSES", "PYTHONPATH"}
    names.add("CUDA_VISIBLE_DEVICES")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours) and k not in names}
    return kept | {name: str(value) for name, value in settings.items()}


def bash(benchmark, *arguments, cwd=None, **settings):
    command = ["bash", str(SCRIPTS / f"{benchmark}.sh"), *arguments]
    env = environment(**settings)
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=300)


def make_data(root):
    """A handful of made-up questions and images in LLaVA's layout."""
    for folder in ("textvqa/train_images", "vqav2/test2015", *SPLITS):
        (root / folder).mkdir(parents=True)
    pictures = [Image.new("RGB", (64, 40 + 20 * i), (80 * i, 40, 200 - 80 * i)) for i in range(3)]

    questions, annotations = [], []
    for i, picture in enumerate(pictures):
        picture.save(root / "textvqa" / "train_images" / f"{i}.jpg")
        questions.append({"question_id": f"t{i}", "image": f"{i}.jpg", "text": PROMPT})
        answers = ["yes" if i < 2 else "no"] * 10
        question = PROMPT.split("\n")[0]
        annotations.append({"image_id": f"t{i}", "question": question, "answers": answers})
    write_lines(root / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl", questions)
    (root / "textvqa" / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": annotations}))

    for benchmark, split in SPLITS.items():
        rows = ["index\tquestion\thint\tA\tB\tC\tD\tcategory\timage\tsplit"]
        for i, picture in enumerate(pictures):
            file = io.BytesIO()
            picture.save(file, format="JPEG")
            image = base64.b64encode(file.getvalue()).decode()
            rows.append(f"{10 * i}\t这是什么 {i}?\t\tred\tNone\tblue\t\tcolour\t{image}\tdev")
        (root / benchmark / f"{split}.tsv").write_text("\n".join(rows) + "\n")

    for i, picture in enumerate(pictures):
        picture.save(root / "vqav2" / "test2015" / f"{i}.jpg")
    everything = [
        {"question_id": 100 + i, "image": f"{i % 3}.jpg", "text": "Is it red?"} for i in range(7)
    ]
    write_lines(root / "vqav2" / "llava_vqav2_mscoco_test2015.jsonl", everything)
    write_lines(root / "vqav2" / "llava_vqav2_mscoco_test-dev2015.jsonl", everything[1:6])
    return root


def write_lines(path, objects):
    path.write_text("".join(json.dumps(line) + "\n" for line in objects))


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Fake:
    """An environment without models (fake_python.py) and the folders of a test."""

    def __init__(self, root, data, server):
        python = root / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{TESTS}/fake_python.py" "$@"\n')
        python.chmod(0o755)
        self.log, self.output = root / "log", root / "out put"
        self.settings = {
            "VENV": root / "venv",
            "DATA": data,
            "OUTPUT": self.output,
            "FAKE_LOG": self.log,
            "FAKE_SERVER": server,
        }

    def run(self, benchmark, **settings):
        """(process, calls of this run)"""
        self.log.unlink(missing_ok=True)
        done = bash(benchmark, **(self.settings | settings))
        return done, self.calls()

    def calls(self):
        return read_lines(self.log) if self.log.exists() else []

    def files(self, name):
        return sorted(self.output.rglob(name))
