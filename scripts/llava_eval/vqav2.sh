#!/usr/bin/env bash
# LLaVA's own VQAv2 evaluation; `bash scripts/llava_eval/vqav2.sh --help` says more.
set -euo pipefail

BENCHMARK=vqav2
COLUMN=VQAv2
TITLE="VQAv2 (test-dev2015) as LLaVA evaluates it; writes the json file for EvalAI."
MORE_USAGE="  NUM_PROCESSES         processes that share the questions (default: 1); with several, each
                        gets one GPU, of CUDA_VISIBLE_DEVICES where that is set"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

QUESTIONS=$DATA/vqav2/llava_vqav2_mscoco_test-dev2015.jsonl
ALL_QUESTIONS=$DATA/vqav2/llava_vqav2_mscoco_test2015.jsonl
IMAGES=$DATA/vqav2/test2015
SERVER=https://eval.ai/web/challenges/challenge-page/830/my-submission

needed_files() {
  printf '%s\t%s\n' \
    "$QUESTIONS" "$EVAL_ZIP" \
    "$ALL_QUESTIONS" "$EVAL_ZIP" \
    "$IMAGES" "http://images.cocodataset.org/zips/test2015.zip (COCO; visualqa.org)"
}

# The package's modules cut the questions into chunks of one size, rounded up: the last of
# NUM_PROCESSES chunks may not exist.
count_chunks() {
  local questions size
  questions=$(grep -c '' "$QUESTIONS") || return
  size=$(((questions + NUM_PROCESSES - 1) / NUM_PROCESSES))
  echo $(((questions + size - 1) / size))
}

ask_chunk() {
  ask "$(chunk_file "$1")" llava.eval.model_vqa_loader --question-file "$QUESTIONS" \
    --image-folder "$IMAGES" --num-chunks "$NUM_PROCESSES" --chunk-idx "$1"
}

chunk_file() { echo "$FOLDER/chunk-$1-of-$NUM_PROCESSES.jsonl"; }

# Stop what still runs when the script ends early; each is a process group of its own.
RUNNING=()
end_chunks() {
  local pid
  for pid in "${RUNNING[@]}"; do
    kill -- "-$pid" 2>/dev/null || true
  done
}
trap end_chunks EXIT

answer() {
  local chunks chunk file failed=0
  local -a files=() devices
  chunks=$(count_chunks) || return
  IFS=, read -r -a devices <<<"${CUDA_VISIBLE_DEVICES-$(seq -s, 0 $((NUM_PROCESSES - 1)))}"
  RUNNING=()
  for ((chunk = 0; chunk < chunks; chunk++)); do
    file=$(chunk_file "$chunk")
    files+=("$file")
    if [[ -e $file ]]; then
      say "chunk $((chunk + 1)) of $chunks is there already, kept: $file"
    elif ((NUM_PROCESSES == 1)); then
      ask_chunk 0 || return
    else
      say "chunk $((chunk + 1)) of $chunks: progress in $file.log"
      set -m # a background job becomes a process group, which the trap can end whole
      (
        if ((${#devices[@]} > 0)); then
          export CUDA_VISIBLE_DEVICES=${devices[chunk % ${#devices[@]}]}
        fi
        ask_chunk "$chunk"
      ) >"$file.log" 2>&1 &
      RUNNING[chunk]=$!
      set +m
    fi
  done
  for chunk in "${!RUNNING[@]}"; do
    if ! wait "${RUNNING[chunk]}"; then
      failed=1
      complain "chunk $((chunk + 1)) of $chunks failed; the end of ${files[chunk]}.log:"
      tail -n 5 "${files[chunk]}.log" >&2
    fi
    unset "RUNNING[chunk]"
  done
  ((failed == 0)) && cat "${files[@]}" >"$FOLDER/answers.jsonl.part" &&
    mv "$FOLDER/answers.jsonl.part" "$FOLDER/answers.jsonl" && rm -f "${files[@]}"
}

finish() {
  local upload=$FOLDER/vqav2_test-dev2015.json
  if [[ ! -e $upload ]]; then
    "$VENV_PYTHON" "$ROOT/scripts" llava_eval.convert_vqav2 --questions "$ALL_QUESTIONS" \
      --answers "$FOLDER/answers.jsonl" --output "$upload" || return
  fi
  RESULT="submit $upload to $SERVER (phase test-dev); the paper's score: $(paper)"
}

main "$@"
