#!/usr/bin/env bash
# LLaVA's own MMBench evaluation; `bash scripts/llava_eval/mmbench.sh --help` says more.
set -euo pipefail

BENCHMARK=mmbench
COLUMN=MMB
SPLIT=mmbench_dev_20230712
TITLE="MMBench (dev) as LLaVA evaluates it; writes the xlsx file for the submission server."
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

needed_files() {
  printf '%s\t%s\n' "$DATA/mmbench/$SPLIT.tsv" "$MMBENCH_FILES/$SPLIT.tsv (opencompass.org.cn)"
}

answer() { answer_mmbench --lang en; }
finish() { finish_mmbench; }

main "$@"
