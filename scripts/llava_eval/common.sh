# What the evaluations beside this file share; sourced by them, not run.
#
# A script sets BENCHMARK, TITLE and COLUMN (of results/paper/*.csv), defines the functions
# needed_files, answer and finish, and calls main "$@".
# In answer and finish: BUDGET, FOLDER (where the run's files go) and RESULT, what the summary says.
# set -e is off inside of a condition, so functions called in one chain their steps with &&.

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)

CKPT=${CKPT:-liuhaotian/llava-v1.5-7b}
DATA=${DATA:-$ROOT/playground/data/eval}
OUTPUT=${OUTPUT:-$ROOT/logs/llava_eval}
RETENTIONS=${RETENTIONS:-unpruned 192 128 64}
VENV=${VENV:-$ROOT/.venv-llava}
[[ $VENV == /* ]] || VENV=$PWD/$VENV # setup_llava.sh works in another folder
NUM_PROCESSES=${NUM_PROCESSES:-1}
VENV_PYTHON=$VENV/bin/python # PYTHON is setup_llava.sh's variable

EVAL_ZIP="eval.zip of LLaVA's docs/Evaluation.md, extracted into $DATA"
EVAL_ZIP+=" (https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md)"
MMBENCH_FILES=https://download.openmmlab.com/mmclassification/datasets/mmbench
MMBENCH_SERVER=https://mmbench.opencompass.org.cn/mmbench-submission

say() { printf '%s: %s\n' "$BENCHMARK" "$*"; }
complain() { printf '%s: %s\n' "$BENCHMARK" "$*" >&2; }

usage() {
  cat <<END
usage: [VARIABLE=VALUE ...] bash scripts/llava_eval/$BENCHMARK.sh [--help]

$TITLE
A finished budget is kept and skipped when the script is started again.

  HIPRUNE_RETENTION     run this budget alone, in visual tokens per image
  RETENTIONS            or these, in order (default: unpruned 192 128 64)
  HIPRUNE_ALPHA, HIPRUNE_OBJECT_LAYER   HiPrune's other settings
  CKPT                  checkpoint of the llava package (default: liuhaotian/llava-v1.5-7b)
  DATA                  data in LLaVA's layout (default: playground/data/eval in the repository)
  OUTPUT                answers and results (default: logs/llava_eval in the repository)
  VENV                  environment; made by setup_llava.sh if missing (default: .venv-llava)
${MORE_USAGE-}
END
}

main() {
  if [[ ${1-} == --help || ${1-} == -h ]]; then
    usage
    exit 0
  fi
  if (($# > 0)); then
    complain "argument '$1': expected --help alone; settings are variables"
    exit 2
  fi
  if ! [[ $NUM_PROCESSES =~ ^[1-9][0-9]*$ ]]; then
    complain "NUM_PROCESSES='$NUM_PROCESSES': expected an integer of at least 1"
    exit 2
  fi
  local -a budgets
  if [[ -n ${HIPRUNE_RETENTION+set} ]]; then
    budgets=("$HIPRUNE_RETENTION") # an empty one too: the check names it
  else
    read -r -a budgets <<<"$RETENTIONS"
  fi
  if ((${#budgets[@]} == 0)); then
    complain "RETENTIONS='$RETENTIONS': expected a list of budgets, say 'unpruned 192'"
    exit 2
  fi
  check_data
  if ! is_set_up; then
    say "$VENV is missing or not complete: running setup_llava.sh"
    VENV=$VENV bash "$ROOT/setup_llava.sh"
  fi
  local names
  names=$("$VENV_PYTHON" "$ROOT/scripts" llava_eval.settings "${budgets[@]}") || exit 2
  local -a folders
  mapfile -t folders <<<"$names"
  trap 'exit 130' INT
  trap 'exit 143' TERM

  local -a summary=()
  local failures=0 index
  for index in "${!budgets[@]}"; do
    BUDGET=${budgets[index]}
    FOLDER=$OUTPUT/$BENCHMARK/${CKPT//\//__}/${folders[index]}
    RESULT=
    say "[$((index + 1))/${#budgets[@]}] $CKPT, $BUDGET -> $FOLDER"
    if ! run_budget; then
      failures=$((failures + 1))
      RESULT="FAILED (reason above)"
      complain "budget $BUDGET failed"
    fi
    summary+=("$(printf '%-10s %s' "$BUDGET" "$RESULT")")
  done
  printf '\n%s, %s\n' "$BENCHMARK" "$CKPT"
  printf '%s\n' "${summary[@]}"
  ((failures == 0))
}

run_budget() {
  mkdir -p "$FOLDER" || return
  if [[ -e $FOLDER/answers.jsonl ]]; then
    say "answers are there already, kept: $FOLDER/answers.jsonl"
  else
    answer || return
  fi
  finish
}

# An environment elsewhere may be made in another way, so only ours is looked at more closely.
is_set_up() {
  [[ -x $VENV_PYTHON ]] || return
  [[ $VENV != "$ROOT/.venv-llava" ]] ||
    (cd "$ROOT" && source scripts/env/common.sh && setup_is_complete llava)
}

# ask OUTPUT MODULE ARGUMENT...: have a module of llava.eval write OUTPUT, whole or not at all.
ask() {
  local output=$1 module=$2
  shift 2
  "$VENV_PYTHON" "$ROOT/scripts" llava_eval.settings --cuda >&2 || return
  set -- "$module" --model-path "$CKPT" --answers-file "$output.part" \
    --conv-mode vicuna_v1 --temperature 0 "$@"
  if [[ $BUDGET == unpruned ]]; then
    "$VENV_PYTHON" -m "$@"
  else
    HIPRUNE_RETENTION=$BUDGET "$VENV_PYTHON" -m hiprune -m "$@"
  fi && mv "$output.part" "$output"
}

paper() {
  "$VENV_PYTHON" "$ROOT/scripts" llava_eval.paper_number --checkpoint "$CKPT" --budget "$BUDGET" --column "$COLUMN"
}

# One message for all that is missing. needed_files prints lines: PATH, a tab, how to get it.
check_data() {
  local path origin missing=
  while IFS=$'\t' read -r path origin; do
    if [[ ! -e $path ]]; then
      missing+=$'\n'"  $path"$'\n'"    from $origin"
    fi
  done < <(needed_files)
  if [[ -n $missing ]]; then
    complain "data are missing (DATA=$DATA); expected:$missing"
    exit 1
  fi
}

# MMBench in either language; SPLIT is the name of its TSV.
answer_mmbench() {
  ask "$FOLDER/answers.jsonl" llava.eval.model_vqa_mmbench \
    --question-file "$DATA/$BENCHMARK/$SPLIT.tsv" --single-pred-prompt "$@"
}

finish_mmbench() {
  local upload=$FOLDER/$SPLIT.xlsx
  if [[ ! -e $upload ]]; then
    "$VENV_PYTHON" "$ROOT/scripts" llava_eval.convert_mmbench --questions "$DATA/$BENCHMARK/$SPLIT.tsv" \
      --answers "$FOLDER/answers.jsonl" --output "$upload" || return
  fi
  RESULT="submit $upload to $MMBENCH_SERVER; the paper's score: $(paper)"
}
