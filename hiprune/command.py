"""The command ``hiprune``: what can be done without writing Python."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hiprune import __version__, launcher

USAGE = """\
usage: hiprune COMMAND [ARGUMENT ...]        (or: python -m hiprune COMMAND [ARGUMENT ...])

  hiprune show IMAGE ...            draw which visual tokens of pictures are kept, and ask the
                                    model with all and with those alone: hiprune show --help
  hiprune -m MODULE [ARGUMENT ...]  run a module that loads its model with the llava package,
                                    HiPrune applied: hiprune -m --help
  hiprune env                       versions, machine and HIPRUNE_* variables, for a report
  hiprune --version
  hiprune --help
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        print(f"hiprune {__version__}")
        return 0
    if command == "-m":
        return launcher.main(arguments if rest[:1] not in (["-h"], ["--help"]) else rest)
    if command == "show":
        from hiprune.show.__main__ import main as show

        return show(rest)
    if command == "env" and not rest:
        from hiprune.environment import report

        print(report(), end="")
        return 0
    print(USAGE, end="", file=sys.stderr)
    print(f"hiprune: arguments {arguments}: expected one of these", file=sys.stderr)
    return 2
