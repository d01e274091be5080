"""Latency and memory of a model, unpruned and pruned by HiPrune, part by part.

    python bench_sys.py --model tiny                                  # any machine, nothing needed
    python bench_sys.py --model llava-1.5-7b                          # the checkpoint of the hub
    python bench_sys.py --model qwen2.5-vl-7b --random-weights        # nothing downloaded
    python bench_sys.py --model llava-1.5-7b --random-weights --part vision
    python bench_sys.py --part kernel                                 # a CUDA GPU
    python bench_sys.py --part methods                                # what a method's choice costs

Run it with the environment of setup_llava.sh (the `llava` package) or setup_qwen.sh (transformers'
own models; Qwen2.5-VL). ``--help`` lists the options.
"""

import sys

from scripts.efficiency.latency.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
