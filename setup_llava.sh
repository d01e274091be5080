#!/usr/bin/env bash
# Make the environment for LLaVA-1.5 and LLaVA-NeXT of the `llava` package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'USAGE'
usage: bash setup_llava.sh

Makes .venv-llava with pinned versions of torch, transformers, llava-torch, lmms-eval and this
repository. Safe to run again: it repairs what is missing and changes nothing else.

variables
  VENV     where to make it                      (default .venv-llava)
  PYTHON   an interpreter, Python 3.10 to 3.12   (default the first found on PATH)
USAGE
}

case "${1-}" in
    "") ;;
    -h | --help) usage; exit 0 ;;
    *) echo "setup_llava.sh: unknown argument '$1'; accepted is --help" >&2; exit 2 ;;
esac

VENV=${VENV:-.venv-llava}
OLDEST=10
REQUIREMENTS=scripts/requirements-llava.txt
source scripts/setup_common.sh
make_venv
install_pinned $REQUIREMENTS
# These three pin or build against other versions than the ones known to run together.
pip_install --no-deps llava-torch==1.2.2.post1 lmms-eval==0.7.3 torchvision==0.28.0
install_hiprune
"$VENV/bin/python" scripts/torchvision_cpu.py
check_imports torch torchvision transformers accelerate datasets llava.model.builder \
    lmms_eval.evaluator fvcore.nn matplotlib hiprune hiprune.models.llava hiprune.lmms_llava
mark_complete setup_llava.sh $REQUIREMENTS
