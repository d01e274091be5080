"""Execute notebooks for run_notebooks.sh: outputs kept, what changes between runs left out."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config

from hiprune import HiPruneError
from scripts.numbers import integer

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    try:
        files = [find(name) for name in args.names] or sorted(FOLDER.glob("*.ipynb"))
        timeout = integer(os.environ.get("TIMEOUT", "600"), 1, name="TIMEOUT")
        output = read_output()
    except HiPruneError as error:
        print(f"run_notebooks.sh: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the kernel, too
    failed = []
    for number, file in enumerate(files, 1):
        print(f"[{number}/{len(files)}] {file.stem}: ", end="", flush=True)
        start = time.monotonic()
        try:
            book, reason = execute(file, args.tiny, timeout)
        except KeyboardInterrupt:
            print("interrupted; it is left as it was")
            return 130
        took = f"{time.monotonic() - start:.0f} s"
        if reason:
            failed.append(file.stem)
            print(f"FAILED after {took} in {reason}", flush=True)
            continue
        target = file if output is None else output / file.name
        if output is not None or not args.tiny:
            replace(target, nbformat.writes(book) + "\n")
        print(f"ok in {took}", flush=True)
    if failed:
        print(f"FAILED: {', '.join(failed)}; notebooks that failed are left as they were")
    return 1 if failed else 0


def find(name: str) -> Path:
    """The notebook of a name, or of a file that ends in .ipynb."""
    file = Path(name) if name.endswith(".ipynb") else FOLDER / f"{name}.ipynb"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.ipynb")))
        raise HiPruneError(f"no notebook '{name}'; expected {known}, or a file *.ipynb")
    return file.resolve()


def read_output() -> Path | None:
    """Where executed notebooks go; None: in place, or with --tiny nowhere."""
    if not os.environ.get("OUTPUT"):
        return None
    output = Path(os.environ["OUTPUT"])
    output.mkdir(parents=True, exist_ok=True)
    return output


def execute(file: Path, tiny: bool, timeout: int) -> tuple[nbformat.NotebookNode, str]:
    """The notebook with its outputs, and why it failed, or ""."""
    book = nbformat.read(file, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory() as home:
        # Over sockets in that folder: no port that others on the machine could reach.
        sockets = {"transport": "ipc", "ip": f"{home}/kernel"}
        client = NotebookClient(
            book,
            config=Config(KernelManager=sockets),
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            shutdown_kernel="immediate",
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(FOLDER)}},
        )
        try:
            # Not client.execute(), which takes Ctrl-C for the death of the kernel.
            with client.setup_kernel(env=environment(tiny, home)):
                for index, cell in enumerate(book.cells):
                    count = client.code_cells_executed + 1
                    client.execute_cell(cell, index, execution_count=count)
        except CellExecutionError as error:
            return book, f"{_where(book)}: {error.ename}: {error.evalue}"
        except CellTimeoutError:
            return book, f"{_where(book)}: not finished after {timeout} s (TIMEOUT)"
        except DeadKernelError:
            return book, f"{_where(book)}: the kernel died"
        except RuntimeError as error:  # it never started
            return book, f"the start of the kernel: {error}"
    return tidied(book), ""


def environment(tiny: bool, home: str) -> dict[str, str]:
    """The kernel's: no history or profile of the user's, no warnings of packages."""
    return {
        **os.environ,
        "IPYTHONDIR": home,
        "PYTHONWARNINGS": "ignore",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "NOTEBOOK_TINY": str(int(tiny)),
        "NOTEBOOK_FROM": os.getcwd(),  # the kernel runs elsewhere
    }


def tidied(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what changes from run to run or from machine to machine."""
    book.metadata = nbformat.from_dict(METADATA)
    for cell in book.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            texts = [output] if "text" in output else [output.get("data", {})]
            for text in texts:
                for key in ("text", "text/plain", "text/markdown"):
                    if key in text:
                        text[key] = text[key].replace(f"{ROOT}{os.sep}", "")
    return book


def replace(target: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    part = target.with_name(target.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, target)


def _where(book: nbformat.NotebookNode) -> str:
    """The last cell that was begun: its number among all, and its first line."""
    code = [(number, c) for number, c in enumerate(book.cells, 1) if c.cell_type == "code"]
    begun = [(number, c) for number, c in code if c.execution_count or c.outputs]
    number, cell = (begun or code)[-1 if begun else 0]
    return f"cell {number} (`{cell.source.strip().splitlines()[0]}`)"


if __name__ == "__main__":
    sys.exit(main())
