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
there, in both at once; what the second one says comes when the first has ended. No GPU and no model
hub needed.

  ONLY   names of environments: llava, qwen, and vllm, that of the vLLM plugin (.venv-vllm, 4 GB),
         which is tested where it is named                          (default "llava qwen")
  JOBS   cores to keep busy (default: all, 8 at most) with processes of one thread each; 0: the tests
         run in pytest's own process, as a debugger needs it, one environment after the other
USAGE
        exit 0
        ;;
esac

read -ra names <<<"${ONLY:-llava qwen}"
for name in "${names[@]}"; do
    case "$name" in
        llava | qwen | vllm) ;;
        *) echo "ONLY='$ONLY': expected names out of llava, qwen and vllm" >&2; exit 2 ;;
    esac
done

jobs=$(getconf _NPROCESSORS_ONLN)
jobs=${JOBS:-$((jobs < 8 ? jobs : 8))}
[[ $jobs =~ ^[0-9]+$ ]] || { echo "JOBS='$jobs': expected a whole number from 0" >&2; exit 2; }

source scripts/env/common.sh
missing=()
for name in "${names[@]}"; do
    VENV=$ROOT/.venv-$name
    setup_is_complete "$name" || missing+=("$name")
done

# set_up_at_once NAME ...: each line that they print begins with the environment's name.
set_up_at_once() {
    local name status started=()
    set -m # process groups of their own, which Ctrl-C does not reach by itself
    for name in "$@"; do
        (
            VENV=$ROOT/.venv-$name bash "setup_$name.sh" </dev/null 2>&1 |
                while IFS= read -r line; do echo ".venv-$name: $line"; done
        ) &
        started+=("$!")
    done
    set +m
    # shellcheck disable=SC2064 # these very processes
    trap "kill -INT -- ${started[*]/#/-} 2>/dev/null || true" EXIT
    trap 'exit 130' INT
    for name in "$@"; do
        status=0
        wait "${started[0]}" || status=$?
        started=("${started[@]:1}")
        if ((status)) && [[ $name == vllm && ${#names[@]} -gt 1 ]]; then
            echo "skipped: .venv-vllm cannot be made here (above): vLLM's tests are left out"
            names=("${names[@]/vllm/}")
        elif ((status)); then
            exit $status
        fi
    done
    trap - EXIT INT
}
((${#missing[@]} == 0)) || set_up_at_once "${missing[@]}"

# Compiled once, in place of once by each of the many programs that the tests start.
unset PYTHONDONTWRITEBYTECODE

# run_tests NAME PROCESSES [pytest arguments]
run_tests() {
    local python=$ROOT/.venv-$1/bin/python processes=$2
    echo "tests in .venv-$1"
    shift 2
    # A file stays in one process, for what its tests share; files in the order of conftest.py.
    "$python" -m pytest -n "$processes" --dist loadfile --no-loadscope-reorder "$@"
}

status=0
listed=" ${names[*]} "
if [[ $listed == *" llava "* && $listed == *" qwen "* ]] && ((jobs)); then
    # One process more than cores, so that none is idle where an environment is at its last files.
    share=$(((jobs + 1) / 2))
    log=$(mktemp)
    set -m # a process group of its own, which Ctrl-C does not reach by itself
    run_tests qwen $((share + 1)) "$@" </dev/null >"$log" 2>&1 &
    second=$!
    set +m
    trap 'kill -INT -- "-$second" 2>/dev/null || true; rm -f "$log"' EXIT
    trap 'exit 130' INT
    run_tests llava "$share" "$@" || status=1
    wait "$second" || status=1
    cat "$log"
    names=("${names[@]/llava/}")
    names=("${names[@]/qwen/}")
fi
for name in ${names[@]+"${names[@]}"}; do
    [[ -z $name ]] || run_tests "$name" "$jobs" "$@" || status=1
done
exit $status
