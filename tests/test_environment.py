"""The environments: complete locks, what is installed, and a set-up that tells when it failed."""

import os
import re
import subprocess
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts.env import lock, locked

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "scripts" / "env"
HERE = "qwen" if find_spec("llava") is None else "llava"
# Their own requirements contradict the versions that run together: scripts/env/pyproject.toml.
REPLACED = {"llava-torch", "lmms-eval", "torchvision"}
# One requirement of these alone.
WAIVED = {("gradio", "pillow")}


def wanted(path):
    """The requirements of a list, those of the lists that it names included."""
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            yield from wanted(path.parent / line[3:])
        elif line and not line.startswith("-c "):  # of another lock
            yield Requirement(line)


@pytest.mark.parametrize("name", locked.NAMES)
def test_a_list_is_met_by_its_lock(name):
    versions = {}
    for entry in locked.read_lock(FOLDER / f"{name}.lock"):
        versions.setdefault(entry.name, []).append(entry.version)
    lines = list(wanted(FOLDER / f"{name}.in"))
    assert len(lines) > 20
    for line in lines:
        found = versions.get(locked.normal(line.name), [])
        assert found and all(line.specifier.contains(version) for version in found), line


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.lock")), ids=lambda path: path.stem)
def test_a_lock_pins_every_line_with_hashes(path):
    entries = locked.read_lock(path)  # raises for a line without a version
    assert len(entries) > (10 if path.stem == "cuda" else 100)
    assert {entry.name for entry in entries if not entry.hashes} <= {"torch"}
    # A CPU machine downloads no CUDA package.
    cuda = [entry.name for entry in entries if entry.name.startswith(("nvidia-", "cuda-"))]
    assert bool(cuda) == path.stem.endswith("cuda")
    assert re.search("https?:", path.read_text(encoding="utf-8")) is None


@pytest.mark.parametrize("name", ["lmms-eval", "tabulate", "torch", "triton"])
def test_what_is_tested_in_one_environment_alone_is_the_same_in_both(name):
    """conftest.py's lists rest on it."""
    locks = (locked.read_lock(FOLDER / f"{environment}.lock") for environment in ("llava", "qwen"))
    one, other = ({entry.version for entry in lock if entry.name == name} for lock in locks)
    assert one == other != set()


def test_this_environment_is_its_lock():
    assert locked.differences(HERE, locked.chosen()) == ([], [])


def test_differences_name_what_is_missing_wrong_and_besides(monkeypatch, tmp_path):
    lock_file = tmp_path / "small.lock"
    lock_file.write_text(
        "packaging==0.1 \\\n    --hash=sha256:00\nnot-there==2\npytest==9 ; sys_platform == 'x'\n"
    )
    monkeypatch.setattr(locked, "FOLDER", tmp_path)
    wrong, besides = locked.differences("small")
    here = metadata.version("packaging")
    assert wrong == ["not-there missing: expected 2", f"packaging {here}: expected 0.1"]
    assert f"pytest {metadata.version('pytest')}: expected none" in besides  # not of this platform
    assert locked.differences("small", {"packaging": here})[0] == ["not-there missing: expected 2"]
    lock_file.write_text("packaging>=1\n")
    with pytest.raises(ValueError, match=r"small\.lock: 'packaging>=1' pins no version"):
        locked.differences("small")


def test_nothing_that_a_distribution_needs_is_missing():
    """The locks are installed without looking at requirements: so they are looked at here."""
    chosen = locked.chosen()
    unmet = []
    for entry in locked.read_lock(FOLDER / f"{HERE}.lock"):
        if not entry.holds_here or entry.name in REPLACED:
            continue
        for text in metadata.requires(entry.name) or []:
            need = Requirement(text)
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            if (entry.name, need.name) in WAIVED:
                continue
            try:
                version = metadata.version(need.name)
            except metadata.PackageNotFoundError:
                version = None
            if version is None or not need.specifier.contains(version, prereleases=True):
                unmet.append(f"{entry.name} needs {need}; found {version}")
    # With another transformers than the lock's, what suits it is its user's to find.
    assert [line for line in unmet if line.split()[0] not in chosen] == []


UV = """\
appnope==1.0.0 ; python_full_version < '3.13' and sys_platform == 'darwin' \\
    --hash=sha256:aa \\
    --hash=sha256:bb
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:cc
filelock==3.32.7 ; python_full_version < '3.13' and (sys_platform == 'linux' or sys_platform == 'darwin') \\
    --hash=sha256:dd
tomli==2.5.0 ; python_full_version < '3.11' and sys_platform == 'linux' \\
    --hash=sha256:ee
torch==2.13.0 \\
    --hash=sha256:ff
"""  # noqa: E501


def test_a_lock_is_tidied():
    """Markers as short as they can be, nothing for other systems, no hash for torch."""
    assert lock._tidy(UV, ("3.10", "3.11", "3.12")) == (
        "appnope==1.0.0 ; sys_platform == 'darwin' \\\n"
        "    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "filelock==3.32.7 \\\n    --hash=sha256:dd\n"
        "tomli==2.5.0 ; python_full_version < '3.11' and sys_platform == 'linux' \\\n"
        "    --hash=sha256:ee\n"
        "torch==2.13.0\n"
    )
    # No environment of the other lock has a Python below 3.11.
    assert "tomli" not in lock._tidy(UV, ("3.11", "3.12"))


def test_changes_of_a_lock():
    before = [locked.Entry("a", "1", "", 1), locked.Entry("b", "1", "", 1)]
    after = [locked.Entry("a", "2", "", 1), locked.Entry("b", "1", "", 1)]
    after += [locked.Entry("c", "3", "x", 1), locked.Entry("c", "4", "y", 1)]
    assert lock._changes(before, after) == ["a 1 -> 2", "c - -> 3 / 4"]
    assert lock._changes(after, after) == []


def bash(script, **variables):
    return subprocess.run(
        ["bash", "-c", "set -euo pipefail; OLDEST=11; source scripts/env/common.sh\n" + script],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.skipif(
    Path(sys.prefix) != ROOT / f".venv-{HERE}", reason="an environment that no set-up made"
)
def test_a_second_set_up_changes_nothing():
    done = subprocess.run(
        ["bash", f"setup_{HERE}.sh"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    told = f"setup: .venv-{HERE} is ready; nothing was changed\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, told, "")


# All of a set-up but its benchmark is taken for done.
STUBS = "make_venv() { :; }; install_locked() { :; }; install_hiprune() { :; }; IMPORTS=(json)\n"


@pytest.fixture
def fake_venv(tmp_path):
    """An environment whose benchmark does what the test says; otherwise this one's Python.

    Whether torchvision imports is looked at where a test asks for it: it takes seconds.
    """

    def make(benchmark, torchvision="exit 0"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        python = tmp_path / "bin" / "python"
        python.write_text(
            f"""#!/usr/bin/env bash
            case "$*" in
                *scripts.bench*) {benchmark} ;;
                *locked.py*) exit 0 ;;
                *torchvision_cpu.py*) {torchvision} ;;
            esac
            exec {sys.executable} "$@"
            """
        )
        python.chmod(0o755)
        return str(tmp_path)

    return make


def test_a_set_up_whose_benchmark_fails_is_not_ready(fake_venv):
    reason = "[1/1] unpruned, hiprune_tiny: FAILED after 5 s: No module named 'filelock._api'"
    venv = fake_venv(f'echo "{reason}"; exit 1')
    done = bash(STUBS + f"set_up {HERE} llava 48", VENV=venv)
    assert done.returncode == 1
    assert reason in done.stderr and "is not ready" in done.stderr
    assert "is ready" not in done.stdout
    assert not (Path(venv) / "hiprune-setup-complete").exists()


@pytest.mark.skipif(HERE == "llava", reason="the same shell in both: tested in .venv-qwen")
def test_a_set_up_remembers_what_it_was_made_of(fake_venv):
    venv = fake_venv('env | grep -c "^HIPRUNE_ALPHA=" && exit 1; exit 0', torchvision=":")
    complete = f"set_up {HERE} llava 48 a==1 >&2; setup_is_complete {HERE} %s && echo complete"
    # A variable of the caller's does not reach the two questions.
    for versions, told in (("", "complete\n"), ("a==1", "complete\n"), ("a==2", "")):
        done = bash(STUBS + complete % versions, VENV=venv, HIPRUNE_ALPHA="0.3")
        assert done.stdout == told, done.stderr
    done = bash(
        f"setup_fingerprint() {{ echo another; }}; setup_is_complete {HERE} && echo complete",
        VENV=venv,
    )
    assert done.stdout == ""


@pytest.mark.parametrize("value", ["3.11", "5.16.0", "5.24", "x"])
def test_a_version_that_is_not_supported_is_refused(value):
    done = subprocess.run(
        ["bash", "setup_qwen.sh"],
        cwd=ROOT,
        env={**os.environ, "TRANSFORMERS": value},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == f"TRANSFORMERS='{value}': expected 5.17.0 to 5.x\n"


def test_two_set_ups_at_once(fake_venv, tmp_path):
    """The second waits for the first, says who that is, and finds the environment made."""
    flag = tmp_path / "go-on"
    venv = fake_venv(f"touch {tmp_path}/started; until [[ -e {flag} ]]; do sleep 0.1; done; exit 0")
    script = "set -euo pipefail; OLDEST=11; source scripts/env/common.sh\n" + STUBS
    command = ["bash", "-c", f"{script} set_up {HERE} llava 48"]
    environment = {**os.environ, "VENV": venv}

    def start():
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    with start() as first:
        while not (tmp_path / "started").exists():
            assert first.poll() is None
            time.sleep(0.05)
        with start() as second:
            said = second.stdout.readline()
            assert re.fullmatch(rf"setup: process {first.pid} on .*, is at it; waiting\n", said)
            flag.touch()
            assert "is ready\n" in first.communicate(timeout=120)[0]
            told = second.communicate(timeout=120)[0]
    assert told == f"setup: {venv} is ready: another set-up has made it\n"
    assert (first.returncode, second.returncode) == (0, 0)
    assert not Path(f"{venv}.lock").exists()
