#!/usr/bin/env bash
# Set up what the tests need, then run them all.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

case "${1-}" in
    -h | --help)
        cat <<'USAGE'
usage: bash scripts/test.sh [pytest arguments]

Makes .venv-llava (variable VENV: elsewhere) if it is missing or its pins have changed, and runs the
tests in it. No GPU and no model hub needed.
USAGE
        exit 0
        ;;
esac

VENV=${VENV:-.venv-llava}
[[ $VENV == /* ]] || VENV=$ROOT/$VENV
source scripts/setup_common.sh
if ! setup_is_complete; then
    VENV=$VENV bash setup_llava.sh
fi
exec "$VENV/bin/python" -m pytest "$@"
