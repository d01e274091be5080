"""What the shell scripts and benchmarks run: a folder is a program, ``python -m scripts.FOLDER``.

======================= ===========================================================================
bench                   runs of lmms-eval behind bench_*.sh, ablation.sh and methods.sh
tables                  what has run, as tables and pictures beside the paper's numbers
efficiency.latency      bench_sys.py: time and memory, part by part
efficiency.flops        flops.py: FLOPs without weights
serving                 vLLM's servers side by side, pruned and unpruned
tiny                    the small models of assets/: scenes, training, their lmms-eval task
convert                 checkpoints of LLaVA from one package's format to the other's
demo                    demo.sh: a page to play with
llava_eval              LLaVA's own evaluations, a shell script each
env                     the environments: locks, and what sets them up
======================= ===========================================================================

Imports go down: bench uses tables; serving uses efficiency, tables and tiny; efficiency, convert
and tiny stand beside them; nothing imports bench; demo uses tiny. All may use
benchmarks.py, what is evaluated, guard.py, which ends what a program started, and the public names
of hiprune.
"""
