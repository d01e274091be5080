"""Answers to VQAv2 test-dev2015 -> the json file that EvalAI takes.

    python -m scripts.llava_eval.convert_vqav2 --questions llava_vqav2_mscoco_test2015.jsonl \
        --answers answers.jsonl --output upload.json

EvalAI wants an entry for every question of test2015, of which test-dev2015 is a part: the others
get an empty answer, which test-dev does not score.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from scripts.llava_eval.answers import (
    ConversionError,
    exit_status,
    read_answers,
    read_lines,
    replacing,
)


def convert(questions: Path, answers: Path, output: Path) -> None:
    """Write ``output``: [{"question_id", "answer"}, ...] in the order of ``questions``.

    Answers are normalised as the VQA evaluation does (case, articles, punctuation, numbers).

    Raises:
        ConversionError: an answer to no question of the split.
    """
    # The one that the package's own VQA evaluations use; the import loads the package.
    from llava.eval.m4c_evaluator import EvalAIAnswerProcessor

    normalise = EvalAIAnswerProcessor()
    found = read_answers(answers)
    asked = [line["question_id"] for _, line in read_lines(questions)]
    unknown = found.keys() - set(asked)
    if unknown:
        raise ConversionError(
            f"{answers}: {len(unknown)} answers to questions that {questions} does not have, the "
            f"first is {min(unknown, key=str)}; expected the split's own"
        )
    entries = [
        {"question_id": question, "answer": normalise(found.get(question, ""))}
        for question in asked
    ]
    with replacing(output) as part:
        part.write_text(json.dumps(entries), encoding="utf-8")
    print(f"{output}: {len(found)} of {len(asked)} questions answered")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=Path, required=True, help="jsonl of all of test2015")
    parser.add_argument("--answers", type=Path, required=True, help="jsonl of model_vqa_loader")
    parser.add_argument("--output", type=Path, required=True, help="json to write")
    args = parser.parse_args()
    return exit_status(lambda: convert(args.questions, args.answers, args.output))


if __name__ == "__main__":
    sys.exit(main())
