#!/usr/bin/env bash
# A page to play with, on this machine alone.
set -euo pipefail
SCRIPT=scripts/demo.sh

usage() {
    cat <<'USAGE'
usage: bash scripts/demo.sh --tiny
       CKPT=... bash scripts/demo.sh

Serves a page at http://127.0.0.1:7860: a picture, a question, sliders; which visual tokens stay, and
the answers unpruned and pruned. Makes its environment first if it is missing. Ctrl-C ends it.

  --tiny   the small LLaVA-1.5 of assets/: any machine, offline
  --help   this text

  CKPT     a checkpoint of transformers, a folder or a name on the model hub, of any supported
           family; or tiny-llava, tiny-llava-next, tiny-qwen
  PORT     of the page                                                         (default 7860)
  DEVICE   cpu, cuda, ...                                  (default cuda where there is one)
  TEXT     CLIP's checkpoint, for the methods that read the question beside a CLIP tower
           (openai/clip-vit-large-patch14-336 for LLaVA-1.5)   (default: these are not listed)
  VENV     environment                                                 (default .venv-qwen)

HIPRUNE_* variables are the settings to begin with. More: docs/demo.md.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/bench/common.sh"
arguments=()
for argument; do
    case "$argument" in
        -h | --help) usage; exit 0 ;;
        --tiny) arguments=(--tiny) ;;
        *)
            echo "$SCRIPT: unknown argument '$argument'; expected --tiny and --help" >&2
            exit 2
            ;;
    esac
done
[[ -n ${CKPT-}${arguments[*]-} ]] || { echo "CKPT='': expected a checkpoint, or --tiny" >&2; exit 2; }
ENVIRONMENT=qwen
make_environment
exec "$VENV/bin/python" -W ignore "$ROOT/scripts" demo ${arguments[@]+"${arguments[@]}"}
