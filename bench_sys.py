"""Latency and memory of a model, unpruned and pruned by HiPrune, part by part.

    python bench_sys.py --model tiny                                  # any machine, nothing needed
    python bench_sys.py --model llava-1.5-7b                          # the checkpoint of the hub
    python bench_sys.py --model qwen2.5-vl-7b --random-weights        # nothing downloaded
    python bench_sys.py --model llava-1.5-7b --random-weights --part vision
    python bench_sys.py --part kernel                                 # a CUDA GPU

Run it with the environment of setup_llava.sh (the `llava` package) or setup_qwen.sh (transformers'
own models; Qwen2.5-VL). ``--help`` lists the options.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "scripts"))

from sysbench.arguments import parse
from sysbench.errors import BenchError, is_out_of_memory
from sysbench.session import run_session

from hiprune import HiPruneError


def main(argv: list[str] | None = None) -> int:
    """Exit status of a command line; see ``--help``."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    try:
        return run_session(args, argv)
    except (BenchError, HiPruneError) as error:
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
