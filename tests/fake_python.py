"""Stands in for an environment's Python in tests of shell scripts: models are not loaded.

Calls of a llava.eval module that asks a model are written to $FAKE_LOG, a JSON object a line, and
every question is answered with "yes". The budget in $FAKE_FAIL fails after its first answer, and
so does the chunk in $FAKE_FAIL_CHUNK; $FAKE_SLEEP makes all wait. It has the GPU that is asked for,
unless FAKE_NO_GPU is set. Other calls are the real Python's, the one of forking_python.py at
$FAKE_SERVER.
"""

import csv
import json
import os
import sys
import time

from forking_python import run


def option(name, default=None):
    return arguments[arguments.index(name) + 1] if name in arguments else default


def questions():
    path = option("--question-file")
    with open(path, newline="") as file:
        if path.endswith(".tsv"):
            rows = [
                (int(row["index"]), row["question"])
                for row in csv.DictReader(file, dialect="excel-tab")
            ]
        else:
            rows = [(row["question_id"], row["text"]) for row in map(json.loads, file)]
    chunks = int(option("--num-chunks", 1))
    size = -(-len(rows) // chunks)
    return [rows[i : i + size] for i in range(0, len(rows), size)][int(option("--chunk-idx", 0))]


arguments = sys.argv[1:]
if arguments[-1:] == ["--cuda"] and "FAKE_NO_GPU" not in os.environ:
    sys.exit(0)
if "--answers-file" not in arguments:
    sys.exit(run(os.environ["FAKE_SERVER"], arguments))

pruned = arguments[:2] == ["-m", "hiprune"]
call = {
    "pruned": pruned,
    "module": arguments[3] if pruned else arguments[1],
    "retention": os.environ.get("HIPRUNE_RETENTION") if pruned else "unpruned",
    "chunk": int(option("--chunk-idx", 0)),
    "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
    "arguments": arguments,
    "pid": os.getpid(),
}
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(json.dumps(call) + "\n")
with open(option("--answers-file"), "w") as file:
    for question, prompt in questions():
        answer = {"question_id": question, "prompt": prompt, "text": "yes"}
        file.write(json.dumps(answer) + "\n")
        if call["retention"] == os.environ.get("FAKE_FAIL"):
            sys.exit("out of memory, say")
        if str(call["chunk"]) == os.environ.get("FAKE_FAIL_CHUNK"):
            sys.exit("out of memory, say")
    file.flush()
    time.sleep(float(os.environ.get("FAKE_SLEEP", 0)))
