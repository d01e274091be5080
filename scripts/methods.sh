#!/usr/bin/env bash
# HiPrune beside other methods at every budget: accuracy over the number of kept tokens.
set -euo pipefail
SCRIPT=scripts/methods.sh

usage() {
    cat <<'USAGE'
usage: [VARIABLE=value ...] bash scripts/methods.sh [--model MODEL] [--tiny]

Runs every method that the model has the input for (random with three seeds) through lmms-eval at
every budget, and unpruned; prints the table and draws score over budget. All have the same patch
and budget (docs/methods.md): those that look at the class token need a tower with one, those that read
the question a CLIP text encoder or Qwen. Makes its environment first if it is missing. Runs that
have finished are kept and skipped when the same command is started again.

  --model MODEL   llava (default), llava_next, llava_hf, llava_next_hf or qwen2_5_vl
  --tiny          the small trained model and its task, as of the bench scripts
  --help          this text

CKPT, TASKS, RETENTIONS (budgets; with --tiny a half, a third, 2/9, 1/9 and 1/18 of the tokens),
LIMIT, NUM_PROCESSES, OUTPUT and VENV are those of the bench scripts; see
bash bench_llava.sh --help. HIPRUNE_ALPHA and HIPRUNE_OBJECT_LAYER are of HiPrune's runs.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/bench/common.sh"
model_main methods "$@"
