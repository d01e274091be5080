"""Runs of small commands in the place of evaluations."""

import json
import sys

import pytest

from scripts.bench.process import Run

RECORD = {"checkpoint": "x", "pruned": True, "retention": 9, "alpha": 0.1, "object_layer": 9}
RECORD |= {"images": 2, "visual_tokens_per_image": 9.0}
RESULTS = {"results": {"TASK": {}}, "date": "2026", "config": {"limit": None}, "hiprune": RECORD}
WRITE_RESULTS = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / "model").mkdir()
text = os.environ.get("RESULTS", "{results}").replace("TASK", folder.name.partition(".")[0])
(folder / "model" / "20260102_030405_results.json").write_text(text)
""".replace("{results}", json.dumps(RESULTS).replace('"', '\\"'))


@pytest.fixture
def make(tmp_path):
    def make(code, name="task", **environment):
        def command(folder):
            return [sys.executable, "-c", code, str(folder)]

        folder = tmp_path / "logs" / "setting" / name
        return Run(f"N' = 64, {name}", command, environment, folder)

    return make


def names(run):
    return sorted(path.name for path in run.folder.parent.iterdir())
