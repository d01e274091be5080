"""transformers' own model tests on our tiny models, unpatched and with everything kept.

Usage, in .venv-qwen:

    python tests/upstream/run.py CACHE [--checkout FOLDER] [-k EXPRESSION]

CACHE is a folder of your choice: the source distribution of the installed transformers is fetched
into it once, from the package index, and so is `parameterized`, which its tests need. What differs
between the two runs is printed beside refusals.json, the kept list of what may differ and why; the
exit status is 1 where they do not agree. `--update` prints the list as it would be.

The source distribution holds the tests common to all models, not those of generation or of a
model: with a checkout of transformers at the same version these are run as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEPT = HERE / "refusals.json"
# Modules that the common tests import and the source distribution lacks: mixins without a test.
STUBS = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
}
MODELS = (
    "internvl",
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "video_llava",
)


def fetch(cache: Path) -> Path:
    """The folder that `tests` of the installed transformers can be imported from."""
    import transformers

    name = f"transformers-{transformers.__version__}"
    archive, folder = cache / f"{name}.tar.gz", cache / name
    cache.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "-q"]
    if not archive.exists():
        source = ["--no-binary", ":all:", "--no-deps", "--no-build-isolation"]
        wanted = f"transformers=={transformers.__version__}"
        subprocess.run([*pip, "download", *source, "--dest", cache, wanted], check=True)
    if not folder.exists():
        with tarfile.open(archive) as files:
            members = [m for m in files if m.name.startswith(f"{name}/tests/")]
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4
            files.extractall(cache, members=members, **safe)
    if not (cache / "site").exists():
        target = ["--no-deps", "--target", cache / "site"]
        subprocess.run([*pip, "install", *target, "parameterized"], check=True)
    for path, text in STUBS.items():
        stub = folder / "tests" / path
        stub.parent.mkdir(exist_ok=True)
        (stub.parent / "__init__.py").touch()
        if not stub.exists():
            stub.write_text(text, encoding="utf-8")
    (folder / "tests" / "__init__.py").touch()
    return folder


def run(mode: str, cache: Path, tests: Path, files: list[Path], select: str | None) -> dict:
    """Test -> {outcome, errors, told: messages of HiPruneErrors} of one run."""
    log = cache / f"{mode}.jsonl"
    log.unlink(missing_ok=True)
    path = [tests, cache / "site", HERE, HERE.parent, HERE.parents[1]]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, path), os.environ.get("PYTHONPATH", "")]),
        "HIPRUNE_UPSTREAM": mode,
        "HIPRUNE_UPSTREAM_LOG": str(log),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    chosen = ["-k", select] if select else []
    command = [sys.executable, "-m", "pytest", "-p", "plugin", "-q", "--tb=no", "--noconftest"]
    ours = ["-o", "addopts=", "-W", "ignore"]  # they have marks that we do not know
    subprocess.run([*command, *ours, *files, *chosen], env=env)
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    found: dict[str, dict] = {}
    for line in map(json.loads, lines):  # a line a subtest, and one for the test
        test = found.setdefault(line["test"], {"outcome": "passed", "errors": [], "told": []})
        if line["outcome"] == "failed" or test["outcome"] == "passed":
            test["outcome"] = line["outcome"]
        for name, values in (("errors", [line["error"]]), ("told", line["told"])):
            test[name] += [value for value in values if value and value not in test[name]]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--checkout", type=Path, help="transformers' repository, same version")
    parser.add_argument("-k", dest="select", help="as of pytest")
    parser.add_argument("--update", action="store_true", help="print the list as it would be")
    asked = parser.parse_args()
    cache = asked.cache.resolve()
    tests, files = fetch(cache), [HERE / "common.py"]
    if asked.checkout:
        tests = asked.checkout.resolve()
        files = [tests / "tests" / "models" / m / f"test_modeling_{m}.py" for m in MODELS]
    plain, patched = (run(mode, cache, tests, files, asked.select) for mode in ("off", "full"))

    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    # What fails unpatched on these tiny models says nothing.
    differs = {
        test: found
        for test, found in patched.items()
        if found["outcome"] != "passed" and plain.get(test, {}).get("outcome") == "passed"
    }
    for results, name in ((plain, "unpatched"), (patched, "everything kept")):
        counts = Counter(found["outcome"] for found in results.values())
        print(f"{name}: {counts['passed']} pass, {counts['failed']} fail, of {len(results)}")
    news = [test for test in differs if test not in kept]
    for test in sorted(differs):
        print(f"differs{' (new)' if test in news else ''}: {test}")
        for error in differs[test]["errors"]:
            print(f"    {error}")
    gone = [test for test in kept if test in patched and test not in differs]
    for test in gone:
        print(f"in the list, and no longer so: {test}")
    if asked.update:
        errors = {test: "; ".join(found["errors"]) for test, found in differs.items()}
        reasons = {test: kept.get(test, errors[test]) for test in sorted(differs)}
        print(json.dumps(reasons, indent=2))
    return 1 if news or gone else 0


if __name__ == "__main__":
    sys.exit(main())
