#!/usr/bin/env bash
# Set up what the tests need, then run them all.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

case "${1-}" in
    -h | --help)
        cat <<'USAGE'
usage: bash scripts/test.sh [pytest arguments]

Makes the two environments, .venv-llava (the `llava` package) and .venv-qwen (transformers' own
models), where they are missing or their pins have changed, and runs in each the tests that can run
there: in as many processes as there are cores, 8 at most, with one thread each. No GPU and no model
hub needed.

  ONLY   llava or qwen: one environment alone; vllm: that of the vLLM plugin (.venv-vllm, 4 GB), which
         is tested when it is named
  JOBS   processes; 0: the tests run in pytest's own, as a debugger needs it
USAGE
        exit 0
        ;;
esac

case "${ONLY-}" in
    "" | llava | qwen | vllm) ;;
    *) echo "ONLY='$ONLY': expected llava, qwen or vllm" >&2; exit 2 ;;
esac

jobs=$(getconf _NPROCESSORS_ONLN)
jobs=${JOBS:-$((jobs < 8 ? jobs : 8))}
[[ $jobs =~ ^[0-9]+$ ]] || { echo "JOBS='$jobs': expected a whole number from 0" >&2; exit 2; }

source scripts/env/common.sh
status=0
for name in ${ONLY:-llava qwen}; do
    VENV=$ROOT/.venv-$name
    if ! setup_is_complete "$name"; then
        VENV=$VENV bash "setup_$name.sh"
    fi
    echo "tests in .venv-$name"
    # A file stays in one process, for what its tests share; files in the order of conftest.py.
    "$VENV/bin/python" -m pytest -n "$jobs" --dist loadfile --no-loadscope-reorder "$@" || status=1
done
exit $status
