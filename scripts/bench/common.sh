# What the bench scripts share. Sourced with FAMILY, ENVIRONMENT (llava or qwen) and the texts of the
# usage set. ENGINE=vllm takes transformers' own checkpoints, in .venv-vllm.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

bench_usage() {
    cat <<USAGE
usage: [VARIABLE=value ...] bash $SCRIPT [--tiny]

Evaluates $MODEL_TITLE with HiPrune through lmms-eval, and prints a table beside the paper's. Makes
its environment first if it is missing. Runs that have finished are kept and skipped when the same
command is started again.

  --tiny   the small trained model of this repository on questions about generated scenes: real
           accuracies on any machine in minutes, without a GPU or a model hub. The default budgets
           are the same shares of its fewer tokens, and l is as deep in its 8 layers.${HF_USAGE-}
  --help   this text

what to evaluate
  CKPT            checkpoint, on the hub or a folder     (default $DEFAULT_CKPT)
                  (transformers' own: of any supported family, with that one's budgets and l)
  TASKS           lmms-eval tasks                        (default $DEFAULT_TASKS)
                  (or hiprune_tiny, the questions of --tiny, of any checkpoint)
  RETENTIONS      budgets, and 'unpruned'                (default unpruned $DEFAULT_RETENTIONS)
  $RETENTION_USAGE
  HIPRUNE_ALPHA         share of anchors plus buffers, 0 to 1      (default 0.1)
  HIPRUNE_OBJECT_LAYER  $LAYER_USAGE
  HIPRUNE_METHOD, _SEED, _SCORE, _BUFFER, _NEIGHBORHOOD, _REGISTERS: other methods, see docs/variables.md
  LIMIT           samples a task                         (default all)
how to run
  NUM_PROCESSES   processes, one a GPU                   (default 1)
  ENGINE          transformers, or vllm: an engine in .venv-vllm answers, of transformers' own
                  checkpoints; in tables of their own    (default transformers)
  ENGINE_ARGS     vLLM's arguments: "max_model_len=8192 gpu_memory_utilization=0.8"
  OUTPUT          folder for results and logs            (default logs)
  VENV            environment                            (default .venv-$ENVIRONMENT)

lmms-eval loads most tasks' data with a login to the hub alone, public or not: \`hf auth login\`, or
HF_TOKEN set to a token. Without one, tasks whose data are on this machine already run.
USAGE
}

unknown_argument() {
    echo "$SCRIPT: unknown argument '$1'; expected --tiny${HF_CKPT+, --hf} and --help" >&2
    exit 2
}

# transformers' own LLaVA, in the environment of transformers' own models.
use_hf() {
    [[ -n ${HF_CKPT-} ]] || unknown_argument --hf
    FAMILY=${FAMILY%_hf}_hf
    ENVIRONMENT=qwen
    DEFAULT_CKPT=$HF_CKPT
}

is_complete() (
    cd "$ROOT"
    source scripts/env/common.sh
    setup_is_complete "$ENVIRONMENT"
)

# VENV, absolute, as the set-up of ENVIRONMENT makes it.
make_environment() {
    # A changed lock has our own environment made anew; one that the caller names is left as it is.
    local complete=(test -f "${VENV:-}/hiprune-setup-complete")
    [[ -n ${VENV-} ]] || complete=(is_complete)
    VENV=${VENV:-$ROOT/.venv-$ENVIRONMENT}
    [[ $VENV == /* ]] || VENV=$PWD/$VENV
    if ! "${complete[@]}"; then
        VENV=$VENV bash "$ROOT/setup_$ENVIRONMENT.sh"
    fi
}

bench_main() {
    local tiny=()
    while (($#)); do
        case "$1" in
            --tiny) tiny=(--tiny) ;;
            --hf) use_hf "$@" ;;
            -h | --help) bench_usage; exit 0 ;;
            *) unknown_argument "$1" ;;
        esac
        shift
    done
    if [[ ${ENGINE-} == vllm ]]; then
        [[ -z ${HF_CKPT-} || $FAMILY == *_hf ]] || use_hf
        ENVIRONMENT=vllm
    fi
    local arguments=(--family "$FAMILY" ${tiny[@]+"${tiny[@]}"})
    make_environment
    exec "$VENV/bin/python" -W ignore "$ROOT/scripts" bench "${arguments[@]}"
}

# For scripts that take any of the models: PROGRAM "$@", with SCRIPT and usage set.
model_main() {
    local program=$1 tiny=()
    shift
    FAMILY=llava
    while (($#)); do
        case "$1" in
            --tiny) tiny=(--tiny) ;;
            --model)
                case "${2-}" in
                    llava | llava_next | llava_hf | llava_next_hf | qwen2_5_vl) FAMILY=$2; shift ;;
                    *)
                        echo "--model '${2-}': expected llava, llava_next, llava_hf," \
                            "llava_next_hf or qwen2_5_vl" >&2
                        exit 2
                        ;;
                esac
                ;;
            -h | --help) usage; exit 0 ;;
            *)
                echo "$SCRIPT: unknown argument '$1'; expected --model, --tiny and --help" >&2
                exit 2
                ;;
        esac
        shift
    done
    case "$FAMILY" in
        llava | llava_next) ENVIRONMENT=llava ;;
        *) ENVIRONMENT=qwen ;;
    esac
    make_environment
    exec "$VENV/bin/python" -W ignore "$ROOT/scripts" bench "$program" --family "$FAMILY" \
        ${tiny[@]+"${tiny[@]}"}
}
