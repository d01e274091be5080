"""What LLaVA's scorer of TextVQA is about to read: it would stop with a traceback, or score less.

    python -m scripts.llava_eval.check_textvqa --questions llava_textvqa_val_v051_ocr.jsonl \
        --annotations TextVQA_0.5.1_val.json --answers answers.jsonl

Prints nothing where all is right.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from scripts.llava_eval.answers import ConversionError, exit_status, read_lines


def check(questions: Path, annotations: Path, answers: Path) -> None:
    """Raise a ConversionError for the first thing that is wrong, with its file and line.

    An image may have several questions, so that a question is known by its prompt too.
    """
    _check_no_blanks(answers)
    known = _annotated(annotations)
    asked: Counter[tuple[str, str]] = Counter()
    for number, line in read_lines(questions):
        image, prompt = _texts(questions, number, line, "question_id", "text")
        if not any((image, part.lower()) in known for part in prompt.split("\n")):
            raise ConversionError(
                f"{questions}, line {number}: question_id={image!r}; expected a question of "
                f"{annotations}"
            )
        asked[image, prompt] += 1
    for number, line in read_lines(answers):
        image, prompt, _ = _texts(answers, number, line, "question_id", "prompt", "text")
        if not asked[image, prompt]:
            raise ConversionError(
                f"{answers}, line {number}: question_id={image!r}, prompt={prompt!r:.60}; expected "
                f"a question of {questions}, each once"
            )
        asked[image, prompt] -= 1
    if missing := list(asked.elements()):
        raise ConversionError(
            f"{answers}: no answer to {len(missing)} questions of {questions}, the first is "
            f"{missing[0][0]!r}; expected one for each"
        )


def _texts(path: Path, number: int, line: dict, *names: str) -> list[str]:
    found = [line.get(name) for name in names]
    if not all(isinstance(value, str) for value in found):
        raise ConversionError(
            f"{path}, line {number}: keys {sorted(line)}; expected texts as {', '.join(names)}"
        )
    return found


def _annotated(path: Path) -> set[tuple[str, str]]:
    try:
        data = json.loads(path.read_bytes().decode("utf-8"))["data"]
        return {(one["image_id"], one["question"].lower()) for one in data if one["answers"]}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConversionError(
            f"{path}: {type(error).__name__}: {error}; expected TextVQA's annotations"
        ) from error


def _check_no_blanks(path: Path) -> None:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():  # which other readers skip
            raise ConversionError(f"{path}, line {number}: empty; expected one JSON object a line")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=Path, required=True, help="jsonl of LLaVA's eval.zip")
    parser.add_argument("--annotations", type=Path, required=True, help="json of TextVQA")
    parser.add_argument("--answers", type=Path, required=True, help="jsonl of model_vqa_loader")
    args = parser.parse_args()
    return exit_status(lambda: check(args.questions, args.annotations, args.answers))


if __name__ == "__main__":
    sys.exit(main())
