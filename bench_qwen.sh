#!/usr/bin/env bash
# Qwen2.5-VL with HiPrune on the paper's lmms-eval tasks (paper, Table 4).
set -euo pipefail
SCRIPT=bench_qwen.sh
FAMILY=qwen2_5_vl
ENVIRONMENT=qwen
MODEL_TITLE=Qwen2.5-VL
DEFAULT_CKPT=Qwen/Qwen2.5-VL-3B-Instruct
DEFAULT_TASKS="mmbench_en_dev mmbench_cn_dev pope scienceqa_img vizwiz_vqa_val"
DEFAULT_RETENTIONS="0.334 0.223 0.112"
RETENTION_USAGE="HIPRUNE_QWEN_RETENTION  one budget alone, a share in (0, 1] of the image's tokens; 1 is all"
LAYER_USAGE="l, 1 to 32                         (default 16)"
source "$(dirname "${BASH_SOURCE[0]}")/scripts/bench/common.sh"
bench_main "$@"
