"""The repository as a package: a wheel that works elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import forking_python
import pytest
import torch
from forking_python import serving
from packaging.requirements import Requirement

import hiprune
from scripts.env import torchvision_cpu

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("*.sh"), *(ROOT / "scripts").rglob("*.sh")])


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
    program = wheel.parent / "alone" / "program.py"
    program.parent.mkdir()

    def run(code):
        program.write_text(f"import sys; sys.path.insert(0, {str(target)!r})\n{code}")
        command = [sys.executable, "-S", forking_python.__file__, place, program]
        done = subprocess.run(
            command, cwd=wheel.parent, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.target = target
    # -I: neither the working folder nor anything of the caller's is on the path.
    with serving("torch", options=("-I",)) as place:
        yield run


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    method = {str(path.relative_to(ROOT)) for path in (ROOT / "hiprune").rglob("*.py")}
    adapters = {f"hiprune/models/{path.name}" for path in (ROOT / "models").glob("*.py")}
    assert found == method | adapters | {"hiprune/py.typed"}
    assert "hiprune/models/llava.py" in found
    assert wheel.name.startswith(f"hiprune-{hiprune.__version__}-")


def needed_for(wheel, extra):
    """Names of the distributions that ``pip install hiprune[extra]`` brings, of those here."""
    (told,) = metadata.distributions(path=[str(wheel.parent / "target")])
    assert extra in told.metadata.get_all("Provides-Extra")
    waiting = [(told.requires, {extra})]
    found = set()
    while waiting:
        lines, extras = waiting.pop()
        for need in map(Requirement, lines or []):
            if need.marker and not any(need.marker.evaluate({"extra": e}) for e in {"", *extras}):
                continue
            here = metadata.distribution(need.name)  # raises for what the lock lacks
            assert need.specifier.contains(here.version, prereleases=True), need
            if (here.name, frozenset(need.extras)) not in found:
                found.add((here.name, frozenset(need.extras)))
                waiting.append((here.requires, need.extras))
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def bare(elsewhere, wheel, tmp_path_factory):
    """Run code where the wheel and what one of its extras brings are all there is."""
    tmp_path = tmp_path_factory.mktemp("bare")

    def run(extra, code, *others):
        for name in {*needed_for(wheel, extra), *others}:
            here = metadata.distribution(name)
            for top in {file.parts[0] for file in here.files} - {"..", "__pycache__"}:
                if not (tmp_path / top).exists():  # a namespace of several has them all
                    (tmp_path / top).symlink_to(here.locate_file(top))
        command = [sys.executable, "-I", "-S", "-W", "ignore", "-c"]
        path = [str(tmp_path), str(elsewhere.target)]
        head = f"import gc, sys; gc.disable(); sys.path[:0] = {path!r}\n"
        if find_spec("_torchvision_without_operators"):  # as its .pth file, which -S leaves out
            (tmp_path / "shim.py").write_text(torchvision_cpu.SOURCE)
            head += "import shim\n"
        code = head + code
        done = subprocess.run([*command, code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


ASK = """
import hiprune, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
for path in {paths!r}:
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    processor = AutoProcessor.from_pretrained(path)
    content = [dict(type="image"), dict(type="text", text="What colour is the circle?")]
    text = processor.apply_chat_template([dict(role="user", content=content)])
    inputs = processor(text=text, images=Image.new("RGB", (168, 168)), return_tensors="pt")
    handle = hiprune.apply(model, hiprune.HiPruneConfig(retention=16, object_layer=3))
    model.generate(**inputs, max_new_tokens=2)
    assert not {{"lmms_eval", "matplotlib", "peft"}} & set(sys.modules)
    print(path, handle.selections[0].indices.shape[1])
"""
ASSETS = [str(ROOT / "assets" / name) for name in ("llava-1.5-tiny", "qwen2.5-vl-tiny")]


@pytest.fixture(scope="module")
def kept(bare):
    """A line for each of ASSETS."""
    return bare("transformers", ASK.format(paths=ASSETS)).splitlines()


@pytest.mark.skipif(find_spec("llava") is not None, reason="transformers' own models: .venv-qwen")
@pytest.mark.parametrize("asset", ASSETS, ids=lambda path: Path(path).name)
def test_the_transformers_extra_is_all_that_its_models_need(kept, asset):
    assert f"{asset} 16" in kept


@pytest.mark.skipif(find_spec("llava") is None, reason="the llava package: .venv-llava")
def test_the_llava_extra_is_all_that_the_llava_package_needs(bare, tiny_llava):
    code = f"""
import hiprune, torch
from llava.model.builder import load_pretrained_model
cpu = dict(device_map="cpu", device="cpu")
model = load_pretrained_model({str(tiny_llava)!r}, None, "llava", **cpu)[1].float()
handle = hiprune.apply(model, hiprune.HiPruneConfig(retention=16, object_layer=3))
print(handle.encode_images(torch.zeros(1, 3, 84, 84))[0].shape[0])
"""
    assert bare("llava", code, "llava-torch") == "16\n"


def test_versions_agree():
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {hiprune.__version__}\n" in cited
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changes.partition("\n## ")[2].startswith(hiprune.__version__)


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


def test_in_a_clones_folder_its_own_adapters_are_found(wheel, elsewhere):
    """Where it is not installed, or without -e: the folder comes before what is installed."""
    clone = wheel.parent / "copy"
    told = elsewhere(
        f"sys.path.insert(0, {str(clone)!r})\n"
        "import hiprune.models.registry as found; print(found.__file__)"
    )
    assert told.strip() == str(clone / "models" / "registry.py")


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
    assert found == [["hiprune", "hiprune.lmms.plugin:manifests", str(elsewhere.target)]]
    assert file == str(elsewhere.target / "hiprune" / "lmms" / "llava.py")


def test_the_command_line_works_elsewhere(elsewhere):
    told = elsewhere(
        "import runpy; sys.argv = ['hiprune', '--help']\n"
        "try:\n    runpy.run_module('hiprune', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
    )
    assert "usage: hiprune COMMAND" in told


def test_the_command_is_installed_elsewhere(elsewhere):
    program = elsewhere.target / "bin" / "hiprune"  # which pip writes
    paths = {"PYTHONPATH": str(elsewhere.target), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program, "env"], cwd=elsewhere.target, env=paths,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    where = f"(installed in {elsewhere.target / 'hiprune'})"
    assert done.stdout.startswith(f"hiprune: {hiprune.__version__} {where}\n")


@pytest.mark.skipif(find_spec("llava") is not None, reason="transformers' own models: .venv-qwen")
def test_pictures_are_drawn_elsewhere(elsewhere, tmp_path):
    """Without the scripts; there are no small models, which is said."""
    scene, model = ROOT / "assets" / "scene.png", ROOT / "assets" / "llava-1.5-tiny"
    told = elsewhere(
        "from contextlib import redirect_stderr\n"
        "from hiprune.command import main\n"
        "with redirect_stderr(sys.stdout):\n"
        f"    try:\n        main(['show', {str(scene)!r}])\n"
        "    except SystemExit as stop:\n        print(stop.code)\n"
        f"main(['show', {str(scene)!r}, '--model', {str(model)!r}, '--out', {str(tmp_path)!r}])"
    )
    assert "--model tiny: no " in told and "which a clone of the repository has" in told
    assert told.splitlines()[1] == "2"
    assert told.splitlines()[-1] == f"wrote {tmp_path / 'scene-tokens.png'}"
    assert (tmp_path / "scene-tokens.png").is_file()


def test_torchvision_imports_and_resizes(elsewhere):
    """Its compiled operators may be missing (CPU-only torch); what is Python has to work."""
    elsewhere("import torchvision, torchvision.transforms.v2; print(torchvision.__version__)")

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


def test_no_document_has_a_gap_left_to_fill():
    files = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in files if "@@" in (ROOT / name).read_text(encoding="utf-8")] == []
