#!/usr/bin/env bash
# Make the environment for LLaVA-1.5 and LLaVA-NeXT of the `llava` package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'USAGE'
usage: bash setup_llava.sh

Makes .venv-llava of scripts/env/llava.lock: torch, transformers, llava-torch, lmms-eval and all that
they need, each in the one version that is known to work, and this repository. Ends with two questions
to the small model of assets/ through lmms-eval. Safe to run again: it repairs what is missing and
changes nothing else.

variables
  VENV     where to make it                      (default .venv-llava)
  PYTHON   an interpreter, Python 3.10 to 3.12   (default the first found on PATH)
USAGE
}

case "${1-}" in
    "") ;;
    -h | --help) usage; exit 0 ;;
    *) echo "setup_llava.sh: unknown argument '$1'; expected --help or nothing" >&2; exit 2 ;;
esac

VENV=${VENV:-.venv-llava}
OLDEST=10
IMPORTS=(torch torchvision transformers accelerate datasets llava.model.builder
    lmms_eval.evaluator fvcore.nn matplotlib hiprune hiprune.models.llava hiprune.lmms.llava)
source scripts/env/common.sh
set_up llava llava 48
