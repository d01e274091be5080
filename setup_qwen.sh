#!/usr/bin/env bash
# Make the environment for transformers' own models: Qwen2.5-VL, and LLaVA as llava-hf/*.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'USAGE'
usage: bash setup_qwen.sh

Makes .venv-qwen with pinned versions of torch, transformers, qwen-vl-utils, lmms-eval and this
repository. Safe to run again: it repairs what is missing and changes nothing else.

variables
  VENV           where to make it                      (default .venv-qwen)
  PYTHON         an interpreter, Python 3.11 to 3.12   (default the first found on PATH)
  TRANSFORMERS   its version, 5.17.0 to 5.x            (default 5.23.0)
USAGE
}

case "${1-}" in
    "") ;;
    -h | --help) usage; exit 0 ;;
    *) echo "setup_qwen.sh: unknown argument '$1'; accepted is --help" >&2; exit 2 ;;
esac

VENV=${VENV:-.venv-qwen}
TRANSFORMERS=${TRANSFORMERS:-5.23.0}
if ! [[ $TRANSFORMERS =~ ^5\.(1[7-9]|[2-9][0-9])\.[0-9]+$ ]]; then
    echo "TRANSFORMERS='$TRANSFORMERS': accepted is 5.17.0 to 5.x" >&2
    exit 2
fi
OLDEST=11 # of transformers 5.23
REQUIREMENTS=scripts/requirements-qwen.txt
source scripts/setup_common.sh
make_venv
install_pinned $REQUIREMENTS
# lmms-eval names dozens of packages that only other models and tasks need; torchvision's Python
# part is all that the processors need.
pip_install "transformers==$TRANSFORMERS"
pip_install --no-deps lmms-eval==0.7.3 torchvision==0.28.0
install_hiprune
"$VENV/bin/python" scripts/torchvision_cpu.py
check_imports torch torchvision transformers accelerate datasets qwen_vl_utils \
    lmms_eval.evaluator fvcore.nn matplotlib hiprune hiprune.models.qwen2_5_vl hiprune.models.llava_hf \
    hiprune.lmms_qwen hiprune.lmms_llava_hf
mark_complete setup_qwen.sh $REQUIREMENTS
