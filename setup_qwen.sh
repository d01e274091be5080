#!/usr/bin/env bash
# Make the environment for transformers' own models: Qwen2.5-VL, and LLaVA as llava-hf/*.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'USAGE'
usage: bash setup_qwen.sh

Makes .venv-qwen of scripts/env/qwen.lock: torch, transformers, qwen-vl-utils, lmms-eval and all that
they need, each in the one version that is known to work, and this repository. Ends with two questions
to the small model of assets/ through lmms-eval. Safe to run again: it repairs what is missing and
changes nothing else.

variables
  VENV           where to make it                      (default .venv-qwen)
  PYTHON         an interpreter, Python 3.11 to 3.12   (default the first found on PATH)
  TRANSFORMERS   another version of it, 5.17.0 to 5.x  (default the lock's)
USAGE
}

case "${1-}" in
    "") ;;
    -h | --help) usage; exit 0 ;;
    *) echo "setup_qwen.sh: unknown argument '$1'; expected --help or nothing" >&2; exit 2 ;;
esac

VERSIONS=()
if [[ -n ${TRANSFORMERS-} ]]; then
    if ! [[ $TRANSFORMERS =~ ^5\.(1[7-9]|[2-9][0-9])\.[0-9]+$ ]]; then
        echo "TRANSFORMERS='$TRANSFORMERS': expected 5.17.0 to 5.x" >&2
        exit 2
    fi
    VERSIONS=("transformers==$TRANSFORMERS")
fi
VENV=${VENV:-.venv-qwen}
OLDEST=11 # of transformers 5.23
IMPORTS=(torch torchvision transformers accelerate datasets qwen_vl_utils
    lmms_eval.evaluator fvcore.nn matplotlib hiprune hiprune.models.qwen2_5_vl hiprune.models.llava_hf
    hiprune.lmms.qwen hiprune.lmms.llava_hf)
source scripts/env/common.sh
set_up qwen qwen2_5_vl 0.334 ${VERSIONS[@]+"${VERSIONS[@]}"}
