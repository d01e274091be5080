#!/usr/bin/env bash
# vLLM's server, unpruned and pruned to each budget, side by side under the same requests.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

for argument in "$@"; do
    case "$argument" in
        --) break ;;
        -h | --help)
            cat <<'USAGE'
usage: bash scripts/bench_serving.sh --tiny [ARGUMENT ...] [-- vLLM's arguments]
       CKPT=... bash scripts/bench_serving.sh [ARGUMENT ...] [-- vLLM's arguments]

Makes .venv-vllm where it is missing, starts a server of vLLM for each budget and one unpruned, and
asks one after the other, in turns, by vLLM's own serving benchmark: requests a second, time to first
token, time per output token, tokens in the KV cache; and their ratios over the unpruned server's,
with quartiles. Pictures are drawn here: no model hub is needed. Ctrl-C reports what was measured.

  --tiny                 the small Qwen2.5-VL of assets/, on two cores, in minutes
  --retention N' ...     budgets: tokens (192) or shares (0.334; 1 is one token, 1.0 is all)
                         (default the family's three); unpruned is measured in any case
  --requests N           of a run                                (default 32)
  --concurrency N        at once                                 (default 8)
  --new-tokens N         of each answer                          (default 16)
  --repetitions N        runs of each server                     (default 10)
  --warmup N             runs that are dropped                   (default 1)
  --image-size WxH       of a picture, in pixels                 (default 336x336)
  --seed N               of pictures and questions               (default 0)
  --output FOLDER        for report.md, result.json, plot.png    (default in logs/bench_serving)
  -- ...                 vLLM's arguments, of all servers. They are up at once: on one GPU
                         --gpu-memory-utilization 0.2, say, and --max-model-len 8192
  CKPT, VENV             checkpoint; environment                 (default none; .venv-vllm)
USAGE
            exit 0
            ;;
    esac
done

ENVIRONMENT=vllm
source "$ROOT/scripts/bench/common.sh"
make_environment
exec "$VENV/bin/python" -W ignore "$ROOT/scripts" serving ${CKPT:+--checkpoint "$CKPT"} "$@"
