#!/usr/bin/env bash
# LLaVA-1.5 with HiPrune on the paper's lmms-eval tasks (paper, Table 2).
set -euo pipefail
SCRIPT=bench_llava.sh
FAMILY=llava
ENVIRONMENT=llava
MODEL_TITLE=LLaVA-1.5
DEFAULT_CKPT=liuhaotian/llava-v1.5-7b
DEFAULT_TASKS="gqa mme pope scienceqa_img vizwiz_vqa_val"
DEFAULT_RETENTIONS="192 128 64"
RETENTION_USAGE="HIPRUNE_RETENTION  one budget alone, 1 to 576 tokens per image"
LAYER_USAGE="l, 1 to 24                         (default 9)"
HF_CKPT=llava-hf/llava-1.5-7b-hf
HF_USAGE="
  --hf     transformers' own LLaVA, $HF_CKPT, in .venv-qwen"
source "$(dirname "${BASH_SOURCE[0]}")/scripts/bench/common.sh"
bench_main "$@"
