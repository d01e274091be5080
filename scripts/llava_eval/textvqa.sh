#!/usr/bin/env bash
# LLaVA's own TextVQA evaluation; `bash scripts/llava_eval/textvqa.sh --help` says more.
set -euo pipefail

BENCHMARK=textvqa
COLUMN=TextVQA
TITLE="TextVQA (val) as LLaVA evaluates it, OCR tokens in the prompt; prints the accuracy."
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

QUESTIONS=$DATA/textvqa/llava_textvqa_val_v051_ocr.jsonl
ANNOTATIONS=$DATA/textvqa/TextVQA_0.5.1_val.json
IMAGES=$DATA/textvqa/train_images

needed_files() {
  printf '%s\t%s\n' \
    "$QUESTIONS" "$EVAL_ZIP" \
    "$ANNOTATIONS" "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json" \
    "$IMAGES" "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip (textvqa.org)"
}

answer() {
  ask "$FOLDER/answers.jsonl" llava.eval.model_vqa_loader \
    --question-file "$QUESTIONS" --image-folder "$IMAGES"
}

finish() {
  local score
  if [[ ! -e $FOLDER/score.txt ]]; then
    "$VENV_PYTHON" "$ROOT/scripts" llava_eval.check_textvqa --questions "$QUESTIONS" \
      --annotations "$ANNOTATIONS" --answers "$FOLDER/answers.jsonl" || return
    "$VENV_PYTHON" -m llava.eval.eval_textvqa --annotation-file "$ANNOTATIONS" \
      --result-file "$FOLDER/answers.jsonl" >"$FOLDER/score.txt.part" &&
      mv "$FOLDER/score.txt.part" "$FOLDER/score.txt" || return
  fi
  score=$(sed -n 's/^Accuracy: //p' "$FOLDER/score.txt")
  if [[ -z $score ]]; then
    complain "$FOLDER/score.txt: no accuracy in it"
    return 1
  fi
  RESULT="accuracy $score; the paper's: $(paper)"
}

main "$@"
