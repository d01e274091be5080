"""README and docs: each code block runs, or is what a test of its own runs."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hiprune.models import qwen2_vl

import hiprune

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("assets/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Commands that are run elsewhere, each with the test that does; a line's beginning is enough. Of
# what needs a package index, or is all tests, the script is parsed alone.
RUN_BY = {
    "pip install -e '.[transformers,figures]'": "test_package.py::test_the_transformers_extra",
    "pip install -e '.[llava]'": "test_package.py::test_the_llava_extra",
    "pip install --no-deps llava-torch": "test_package.py::test_the_llava_extra",
    "bash scripts/lock.sh": "test_package.py::test_shell_scripts_parse",
    "bash scripts/test.sh": "test_package.py::test_shell_scripts_parse",
    "bash scripts/llava_eval/": "test_llava_eval.py::test_missing_data_is_one_message",
    "python -m hiprune -m llava.eval": "test_launcher.py::test_the_module_gets_a_pruned_model",
    "vllm serve": "test_vllm_settings.py::test_variables_and_overrides_say_the_same",
    "curl": "test_docs.py::test_a_request_to_the_server_is_json",
}
# A way to install that was tried without a GPU alone, as the page says: gigabytes.
UNTRIED = (".venv-vllm-cuda/bin/pip", "python3.11 -m venv .venv-vllm-cuda", "grep -v ")
WORDS = re.compile(r"^[A-Z_]+=")


class Accepted(BaseException):
    """A program has read its arguments, and would go on."""


def blocks(*languages):
    return [
        pytest.param(page, block, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, (language, block) in enumerate(BLOCK.findall(page.read_text()))
        if language in languages
    ]


def commands():
    """Each of the blocks in bash, without comments; a here document stays with its command."""
    found = {}
    for page, block in (each.values for each in blocks("bash", "sh", "shell")):
        block = re.sub(r"<<(\w+)\n.*?^\1$", "", block, flags=re.MULTILINE | re.DOTALL)
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            for part in re.split(r"\s&&\s", re.sub(r"(^|\s)#.*", "", line)):
                if part.strip() and not re.match(r"for .* do$|done$", part.strip()):
                    found.setdefault(part.strip(), page)
    return [pytest.param(page, text, id=text) for text, page in found.items()]


def accepts(program, arguments):
    """Does the program at a path, or the module, take these arguments? It is stopped then."""
    read = argparse.ArgumentParser.parse_args

    def parse_args(self, *args, **kwargs):
        raise Accepted(read(self, *args, **kwargs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [str(program), *arguments])
        patch.setattr(sys, "path", [str(ROOT), *sys.path])
        patch.chdir(ROOT)
        try:
            if (ROOT / program).is_file():
                runpy.run_path(str(ROOT / program), run_name="__main__")
            elif (ROOT / program).is_dir():
                runpy.run_module(program.replace("/", "."), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
        except Accepted:
            return
        except SystemExit as end:
            if not end.code:
                return  # done already, as `hiprune env` is
            pytest.fail(f"{program} {' '.join(arguments)} ended with {end.code}")
    pytest.fail(f"{program} has read no arguments")


def hands_over(script, arguments, variables, tmp_path):
    """What a shell script starts Python with; its environment's Python is one that only tells."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "hiprune-setup-complete").touch()
    env = {**os.environ, **variables, "VENV": str(tmp_path)}
    done = subprocess.run(
        ["bash", script, *arguments], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("page", "text"), commands())
def test_a_command_of_a_page_is_one_that_works(page, text, tmp_path):
    words = shlex.split(text)
    variables = dict(word.split("=", 1) for word in words if WORDS.match(word))
    program, *arguments = words[len(variables) :]
    command = shlex.join([program, *arguments])
    for beginning, test in RUN_BY.items():
        if command.startswith(beginning):
            file, _, name = test.partition("::")
            assert f"def {name}" in (ROOT / "tests" / file).read_text()
            return
    if program == "bash":
        script, *arguments = arguments
        told = subprocess.run(["bash", script, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert told.returncode == 0
        assert not [name for name in variables if name not in told.stdout]
        started = hands_over(script, arguments, variables, tmp_path)
        if started[:2] == ["-m", "scripts"]:
            accepts("scripts", started[2:])
    elif program == ".venv-vllm/bin/python":  # what it imports is in that environment alone
        assert (ROOT / arguments[0]).is_file()
    elif program.rpartition("/")[2] == "python":
        module = arguments[0] == "-m"
        accepts(arguments[module], arguments[1 + module :])
    elif program == "hiprune":
        accepts("hiprune", arguments)
    elif command.startswith(UNTRIED):
        assert "machine without a GPU, where vLLM 0.32.0 imports" in page.read_text()
    elif program.endswith("/ruff"):
        assert ruff(*arguments, "--help").returncode == 0
    else:
        pytest.fail(f"{page.name}: nothing runs {text!r}")


def ruff(*arguments):
    return subprocess.run([sys.executable, "-m", "ruff", *arguments], capture_output=True)


def test_a_request_to_the_server_is_json():
    for page in PAGES:
        for body in re.findall(r"<<JSON\n(.*?)^JSON$", page.read_text(), re.DOTALL | re.MULTILINE):
            (message,) = json.loads(body)["messages"]
            assert {part["type"] for part in message["content"]} == {"image_url", "text"}


@pytest.mark.parametrize("page", sorted({each.values[0] for each in blocks("python")}), ids=str)
def test_the_python_of_a_page_runs_as_it_stands(page, monkeypatch, capsys, tmp_path):
    """As from the repository's folder, one block after the other."""
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": "__main__"}
    for language, block in BLOCK.findall(page.read_text()):
        if language == "python" and not block.startswith("@register("):
            exec(compile(block, str(page), "exec"), names)
    if page.name == "README.md" and page.parent == ROOT:
        assert capsys.readouterr().out.rstrip().endswith("ASSISTANT: Orange")


def test_the_family_on_the_page_is_the_one_in_the_repository():
    (block,) = (
        each
        for language, each in BLOCK.findall((ROOT / "docs/add-a-family.md").read_text())
        if language == "python" and each.startswith("@register(")
    )
    classes = ast.parse(Path(qwen2_vl.__file__).read_text()).body
    (kept,) = (each for each in classes if isinstance(each, ast.ClassDef))
    if ast.get_docstring(kept) is not None:
        kept.body = kept.body[1:]
    assert ast.unparse(ast.parse(block)) == ast.unparse(kept)


def test_every_link_of_a_page_leads_somewhere():
    for page in PAGES:
        text = BLOCK.sub("", page.read_text())
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            path, _, part = target.partition("#")
            file = (page.parent / path) if path else page
            assert file.exists(), f"{page.name}: {target}"
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if part else []
            marks = [re.sub(r"[^\w\- ]", "", t).strip().lower().replace(" ", "-") for t in titles]
            assert not part or part in marks, f"{page.name}: {target}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
    assert hiprune.__version__ in (ROOT / "CHANGELOG.md").read_text()
