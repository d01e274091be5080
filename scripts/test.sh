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
there. No GPU and no model hub needed. ONLY=llava or ONLY=qwen: one environment alone.
USAGE
        exit 0
        ;;
esac

case "${ONLY-}" in
    "" | llava | qwen) ;;
    *) echo "ONLY='$ONLY': accepted is llava or qwen" >&2; exit 2 ;;
esac

source scripts/env/common.sh
status=0
for name in llava qwen; do
    [[ -z "${ONLY-}" || $ONLY == "$name" ]] || continue
    VENV=$ROOT/.venv-$name
    if ! setup_is_complete "$name"; then
        VENV=$VENV bash "setup_$name.sh"
    fi
    echo "tests in .venv-$name"
    "$VENV/bin/python" -m pytest "$@" || status=1
done
exit $status
