"""What bench_sys.py at the root runs."""

from __future__ import annotations

import sys

from hiprune import HiPruneError
from scripts.efficiency.latency.cli import parse
from scripts.efficiency.latency.rounds import is_out_of_memory
from scripts.efficiency.latency.session import run_session


def main(argv: list[str] | None = None) -> int:
    """Exit status of a command line; see ``bench_sys.py --help``."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    try:
        return run_session(args, argv)
    except HiPruneError as error:
        print(f"bench_sys.py: error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"bench_sys.py: the model does not fit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench_sys.py: interrupted before anything was measured", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
