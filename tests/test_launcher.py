"""python -m hiprune -m MODULE: what it does to llava's loader, and every way it can end."""

import json
import subprocess
import sys

import pytest

from hiprune import launcher


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that the launcher can run, and give its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text):
        name = f"launched_{abs(hash(text))}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.fixture
def loading(module, tiny_llava):
    """A module that loads the tiny checkpoint and encodes two images."""
    return module(
        f"""
import json, sys, torch
from llava.model.builder import load_pretrained_model
assert __name__ == "__main__"
_, model, _, _ = load_pretrained_model({str(tiny_llava)!r}, None, "llava-tiny", device="cpu")
side = model.get_vision_tower().config.image_size
with torch.inference_mode():
    features = model.encode_images(torch.randn(2, 3, side, side).half())
with open(sys.argv[1], "w") as file:
    json.dump([sys.argv[1:], list(features.shape[:2])], file)
"""
    )


def test_the_module_gets_a_pruned_model(loading, tmp_path, monkeypatch, capsys):
    from llava.model import builder

    before = builder.load_pretrained_model, list(sys.argv), sys.modules["__main__"]
    monkeypatch.setenv("HIPRUNE_RETENTION", "17")
    monkeypatch.setenv("HIPRUNE_OBJECT_LAYER", "3")  # the tiny tower has six
    out = tmp_path / "out.json"
    assert launcher.main(["-m", loading, str(out), "--its-own", "-m"]) == 0
    arguments, shape = json.loads(out.read_text())
    assert arguments == [str(out), "--its-own", "-m"]
    assert shape == [2, 17]
    assert capsys.readouterr().err.splitlines()[-1] == (
        "hiprune: LlavaLlamaForCausalLM (llava) keeps N'=17 visual tokens per image (alpha=0.1, "
        "object layer 3)"
    )
    assert builder.load_pretrained_model is before[0]
    assert sys.argv == before[1]
    assert sys.modules["__main__"] is before[2]


def test_a_budget_beyond_the_family_is_refused_on_load(loading, tmp_path, monkeypatch, capsys):
    """Good for LLaVA-NeXT, so that only the model can tell."""
    from llava.model import builder

    before = builder.load_pretrained_model
    monkeypatch.setenv("HIPRUNE_RETENTION", "577")
    assert launcher.main(["-m", loading, str(tmp_path / "out.json")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "hiprune: HIPRUNE_RETENTION='577': expected an integer from 1 to 576 (tokens per image)"
    )
    assert not (tmp_path / "out.json").exists()
    assert builder.load_pretrained_model is before


@pytest.mark.parametrize(
    ("name", "value"),
    [("HIPRUNE_RETENTION", text) for text in ("", "abc", "0", "2881", "1.5", "nan")]
    + [("HIPRUNE_ALPHA", text) for text in ("", "abc", "1.5", "nan", "-0.1")]
    + [("HIPRUNE_OBJECT_LAYER", text) for text in ("", "abc", "0", "25")],
)
def test_a_bad_variable_ends_it_before_the_module_runs(name, value, module, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    assert launcher.main(["-m", module("raise AssertionError")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"hiprune: {name}={value!r}: expected ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [[], ["-m"], ["llava.eval.model_vqa_loader"], ["--what", "x"], ["-x", "-m", "y"]]
)
def test_wrong_usage(arguments, capsys):
    assert launcher.main(arguments) == 2
    assert "usage: hiprune -m MODULE" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["no_such_module", "json.no_such_module", "", ".json"])
def test_a_module_that_does_not_exist(name, module, capsys):
    assert launcher.main(["-m", name]) == 2
    assert f"MODULE={name!r}: no such module" in capsys.readouterr().err


def test_a_module_that_loads_no_model_is_an_error(module, capsys):
    assert launcher.main(["-m", module("print('done')")]) == 1
    output = capsys.readouterr()
    assert output.out == "done\n"
    assert "ended without a model from llava.model.builder.load_pretrained_model" in output.err
    assert "nothing was pruned" in output.err


@pytest.mark.parametrize(("code", "told"), [(3, False), ("'text'", False), (0, True), ("", True)])
def test_the_modules_exit_status_stands(code, told, module, capsys):
    with pytest.raises(SystemExit) as stop:
        launcher.main(["-m", module(f"import sys; sys.exit({code})")])
    assert stop.value.code == (eval(str(code)) if code != "" else None)
    assert ("nothing was pruned" in capsys.readouterr().err) is told


def test_errors_of_the_module(module, monkeypatch, capsys):
    """Ours end with their message, any other keeps its traceback; the loader is itself again."""
    from llava.model import builder

    before = builder.load_pretrained_model
    text = "import hiprune; raise hiprune.HiPruneError('layer 9: ran twice')"
    assert launcher.main(["-m", module(text)]) == 1
    assert capsys.readouterr().err == "hiprune: layer 9: ran twice\n"
    with pytest.raises(ZeroDivisionError):
        launcher.main(["-m", module("1 / 0")])
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        launcher.main(["-m", module("import no_such_module")])
    assert builder.load_pretrained_model is before


def test_a_model_that_is_not_llavas_is_refused(module, monkeypatch, capsys):
    from llava.model import builder

    model = type("Other", (), {})()
    monkeypatch.setattr(builder, "load_pretrained_model", lambda *_, **__: (0, model, 0, 0))
    text = "from llava.model.builder import load_pretrained_model as load; load('x', None, 'x')"
    assert launcher.main(["-m", module(text)]) == 1
    assert "Other; expected an instance of llava's" in capsys.readouterr().err


def test_without_the_llava_package(module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "llava.model.builder", None)
    assert launcher.main(["-m", module("raise AssertionError")]) == 1
    assert "expected an environment with the llava package" in capsys.readouterr().err


def test_help_needs_no_model_package():
    text = (
        "import sys, runpy\n"
        "sys.argv = ['hiprune', '-m', '--help']\n"
        "try:\n    runpy.run_module('hiprune', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'llava', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == launcher.USAGE
    assert "HIPRUNE_RETENTION" in done.stdout
