#!/usr/bin/env bash
# LLaVA-NeXT with HiPrune on the paper's lmms-eval tasks (paper, Table 3).
set -euo pipefail
SCRIPT=bench_llava_next.sh
FAMILY=llava_next
ENVIRONMENT=llava
MODEL_TITLE=LLaVA-NeXT
DEFAULT_CKPT=liuhaotian/llava-v1.6-vicuna-7b
DEFAULT_TASKS="pope scienceqa_img vizwiz_vqa_val"
DEFAULT_RETENTIONS="640 320 160"
RETENTION_USAGE="HIPRUNE_RETENTION  one budget alone, 1 to 2880 tokens per image"
LAYER_USAGE="l, 1 to 24                         (default 9)"
HF_CKPT=llava-hf/llava-v1.6-vicuna-7b-hf
HF_USAGE="
  --hf     transformers' own LLaVA, $HF_CKPT, in .venv-qwen"
source "$(dirname "${BASH_SOURCE[0]}")/scripts/bench/common.sh"
bench_main "$@"
