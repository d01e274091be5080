#!/usr/bin/env bash
# An OpenAI-compatible server of vLLM whose pictures are pruned.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1-}" in
    -h | --help)
        cat <<'USAGE'
usage: CKPT=... bash scripts/serve.sh [vLLM's arguments]
       bash scripts/serve.sh --tiny [vLLM's arguments]

Makes .venv-vllm where it is missing, and serves a checkpoint of Qwen2-VL, Qwen2.5-VL, Qwen3-VL,
LLaVA-1.5 or LLaVA-NeXT (as transformers has them) at http://localhost:8000/v1, each picture pruned to
N' tokens. --tiny: the small Qwen2.5-VL of assets/, named "tiny", with what vLLM needs on two cores.

  CKPT        a folder, or a name on the model hub
  RETENTION   N' of a picture, tokens (192) or a share with a decimal point (0.334); none: unpruned.
              Unless set: the HIPRUNE_* variables, or the defaults of the model's family
  VENV        the environment                     (default .venv-vllm)

Further settings: HIPRUNE_* variables. vLLM's arguments: --port, --tensor-parallel-size, ...
USAGE
        exit 0
        ;;
esac

arguments=()
if [[ ${1-} == --tiny ]]; then
    shift
    CKPT=assets/qwen2.5-vl-tiny
    arguments=(--served-model-name tiny --dtype float32 --max-model-len 2048 --max-num-seqs 16
        --enforce-eager)
    export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND-nobind}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS-1} VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE-1}
fi
[[ -n ${CKPT-} ]] || { echo "CKPT='': expected a checkpoint, or --tiny" >&2; exit 2; }

settings=$(compgen -e | grep '^HIPRUNE_' || true)
if [[ ${RETENTION-} == none ]]; then
    [[ -z $settings ]] || {
        echo "RETENTION=none beside" $settings: "expected one of the two" >&2
        exit 2
    }
elif [[ -n ${RETENTION-} ]]; then
    [[ $RETENTION =~ ^([1-9][0-9]*|0?\.[0-9]+|1\.0*)$ ]] || {
        echo "RETENTION='$RETENTION': expected tokens (192), a share (0.334; 1.0 is all) or none" >&2
        exit 2
    }
    arguments+=(--hf-overrides "{\"hiprune\": {\"retention\": ${RETENTION/#./0.}}}")
elif [[ -z $settings ]]; then
    arguments+=(--hf-overrides '{"hiprune": {}}')
fi

VENV=${VENV:-$PWD/.venv-vllm}
[[ $VENV == /* ]] || VENV=$PWD/$VENV
source scripts/env/common.sh
setup_is_complete vllm || VENV=$VENV bash setup_vllm.sh
export VLLM_NO_USAGE_STATS=${VLLM_NO_USAGE_STATS-1}
# Not `vllm serve`: vllm-cpu's asks for a distribution named vllm.
exec "$VENV/bin/python" -m vllm.entrypoints.openai.api_server --model "$CKPT" \
    ${arguments[@]+"${arguments[@]}"} "$@"
