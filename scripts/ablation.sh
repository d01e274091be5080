#!/usr/bin/env bash
# The paper's ablations (Tables 6 and 11, the sweeps over alpha and the object layer).
set -euo pipefail
SCRIPT=scripts/ablation.sh

usage() {
    cat <<'USAGE'
usage: [VARIABLE=value ...] bash scripts/ablation.sh [--model MODEL] [--tiny]

Runs the paper's Tables 6 and 11 and the sweeps over alpha and the object layer through lmms-eval,
prints the tables beside the paper's and draws the sweeps. Makes its environment first if it is
missing. Runs that have finished are kept and skipped when the same command is started again.

  --model MODEL   llava (default), llava_next, llava_hf, llava_next_hf or qwen2_5_vl
  --tiny          the small trained model and its task, as of the bench scripts
  --help          this text

CKPT, TASKS (default gqa mme pope vizwiz_vqa_val, as far as the bench script has them),
HIPRUNE_RETENTION or HIPRUNE_QWEN_RETENTION (default: the largest of the paper's budgets), LIMIT,
NUM_PROCESSES, OUTPUT and VENV are those of the bench scripts; see bash bench_llava.sh --help.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/bench/common.sh"
model_main ablation "$@"
