#!/usr/bin/env bash
# LLaVA's own MMBench-CN evaluation; `bash scripts/llava_eval/mmbench_cn.sh --help` says more.
set -euo pipefail

BENCHMARK=mmbench_cn
COLUMN=MMB_CN
SPLIT=mmbench_dev_cn_20231003
TITLE="MMBench-CN (dev) as LLaVA evaluates it; writes the xlsx file for the submission server."
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

needed_files() {
  printf '%s\t%s\n' "$DATA/mmbench_cn/$SPLIT.tsv" "$MMBENCH_FILES/$SPLIT.tsv (opencompass.org.cn)"
}

answer() { answer_mmbench --lang cn; }
finish() { finish_mmbench; }

main "$@"
