#!/usr/bin/env bash
# Make the locks of the environments anew, and tell what changed.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

case "${1-}" in
    -h | --help)
        cat <<'USAGE'
usage: bash scripts/lock.sh [--keep] [--into FOLDER]

Resolves scripts/env/*.in to complete locks (scripts/env/*.lock: every distribution with its version
and hashes, for Linux and macOS and all Pythons that the environments take) and prints what changed.
Needs the package index; uv, which resolves, goes into .venv-lock.

  --keep          change no version but what the lists ask for, in place of taking the newest
  --into FOLDER   write there, and leave the kept locks as they are

How and when to renew the locks: CONTRIBUTING.md.
USAGE
        exit 0
        ;;
esac

cd "$ROOT"
OLDEST=10
source scripts/env/common.sh
VENV=$ROOT/.venv-lock
make_venv
pip_install uv==0.13.9 packaging==26.4
exec "$VENV/bin/python" -m scripts.env.lock "$@"
