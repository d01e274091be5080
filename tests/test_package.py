"""The repository as a package: a wheel that works elsewhere, and an environment as pinned."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("*.sh"), *(ROOT / "scripts").rglob("*.sh")])
REQUIREMENTS = sorted((ROOT / "scripts").glob("requirements-*.txt"))
PIN = re.compile(r"([\w.-]+)==([\w.]+)(?:; platform_system == \"Linux\")?")


def pip(*arguments, cwd):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools leaves a build folder beside what it builds."""
    folder = tmp_path_factory.mktemp("package")
    copy = folder / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "hiprune", "models", "scripts", "tests"):
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy)
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder)
    pip("wheel", *options, copy, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def elsewhere(wheel):
    """Run code with the wheel installed in a folder of its own, and return what it prints."""
    target = wheel.parent / "target"
    pip("install", "--no-deps", "--no-index", "--target", target, wheel, cwd=wheel.parent)

    def run(code):
        # -I: neither the working folder nor anything of the caller's is on the path.
        code = f"import sys; sys.path.insert(0, {str(target)!r})\n" + code
        command = [sys.executable, "-I", "-W", "ignore", "-c", code]
        done = subprocess.run(
            command, cwd=wheel.parent, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.target = target
    return run


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = (ROOT / "hiprune").rglob("*.py")
    method = {path.relative_to(ROOT).as_posix() for path in modules}
    adapters = {f"hiprune/models/{path.name}" for path in (ROOT / "models").glob("*.py")}
    assert found == method | adapters
    assert "hiprune/models/llava.py" in found


def test_the_method_works_elsewhere(elsewhere):
    told = elsewhere(
        "import hiprune, torch\n"
        "scores = torch.rand(2, 1, 16)\n"
        "chosen = hiprune.select_tokens(*scores, columns=4, budget=6, alpha=0.5)\n"
        "assert chosen.indices.shape == (1, 6)\n"
        "assert not {'llava', 'transformers', 'lmms_eval'} & set(sys.modules)\n"
        "print(hiprune.__file__)"
    )
    assert told.strip() == str(elsewhere.target / "hiprune" / "__init__.py")


def test_the_adapter_works_elsewhere(elsewhere):
    pytest.importorskip("llava", reason="the llava package lives in .venv-llava alone")
    told = elsewhere(
        "import hiprune.models.llava as adapter; assert callable(adapter.LlavaPackage().patch)\n"
        "print(adapter.__file__)"
    )
    assert told.strip() == str(elsewhere.target / "hiprune" / "models" / "llava.py")


def test_lmms_eval_finds_the_model_elsewhere(elsewhere):
    pytest.importorskip("llava", reason="the llava package lives in .venv-llava alone")
    told = elsewhere(
        "import json\n"
        "from importlib.metadata import entry_points\n"
        "found = [(e.name, e.value, str(e.dist.locate_file('')))\n"
        "         for e in entry_points(group='lmms_eval.models')]\n"
        "from lmms_eval.models import get_model\n"
        "model = get_model('llava_hiprune')\n"
        "print(json.dumps([found, sys.modules[model.__module__].__file__]))"
    )
    found, file = json.loads(told.splitlines()[-1])
    assert found == [["hiprune", "hiprune.lmms_plugin:manifests", str(elsewhere.target)]]
    assert file == str(elsewhere.target / "hiprune" / "lmms_llava.py")


def test_the_command_line_works_elsewhere(elsewhere):
    told = elsewhere(
        "import runpy; sys.argv = ['hiprune', '--help']\n"
        "try:\n    runpy.run_module('hiprune', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
    )
    assert "usage: python -m hiprune -m MODULE" in told


def test_torchvision_imports_and_resizes():
    """Its compiled operators may be missing (CPU-only torch); what is Python has to work."""
    code = "import torchvision, torchvision.transforms.v2; print(torchvision.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    from torchvision import transforms

    left_half = torch.zeros(3, 8, 12)
    left_half[..., :6] = 1
    small = transforms.Resize((4, 6))(left_half)
    assert small.shape == (3, 4, 6)
    assert small[..., 0].eq(1).all() and small[..., -1].eq(0).all()
    picture = transforms.ToPILImage()(left_half)
    assert transforms.Resize(4)(picture).size == (6, 4)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_scripts_parse(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_everything_is_pinned(path):
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    assert [line for line in lines if line and not PIN.fullmatch(line)] == []


def test_what_is_pinned_is_what_is_installed():
    """The pins, and those that the setup installs without their own dependencies."""
    pytest.importorskip("llava", reason="the llava package lives in .venv-llava alone")
    text = (ROOT / "scripts" / "requirements-llava.txt").read_text()
    pins = PIN.findall(text + (ROOT / "setup_llava.sh").read_text())
    assert len(pins) > 20
    # "2.13.0+cpu" is a build of 2.13.0.
    found = {name: metadata.version(name).split("+")[0] for name, _ in pins}
    assert found == dict(pins)


def test_no_document_has_a_gap_left_to_fill():
    files = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in files if "@@" in (ROOT / name).read_text(encoding="utf-8")] == []
