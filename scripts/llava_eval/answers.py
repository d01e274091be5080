"""Answer files of the llava.eval modules, and files that are never seen half written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class ConversionError(ValueError):
    """A file that cannot be converted; the message names it and says what is expected."""


def read_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number from 1, object) of a jsonl file; blank lines are skipped.

    Raises:
        ConversionError: a line that is no UTF-8 text or no JSON object.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                found = json.loads(line.decode("utf-8").strip())
            except ValueError as error:  # of either step
                raise ConversionError(
                    f"{path}, line {number}: {error}; expected one JSON object a line"
                ) from error
            if not isinstance(found, dict):
                raise ConversionError(
                    f"{path}, line {number}: {str(found)[:60]!r}; expected one JSON object a line"
                )
            yield number, found


def read_answers(path: Path) -> dict[int | str, str]:
    """question_id -> text of a file that a llava.eval module wrote.

    Raises:
        ConversionError: a line without these two keys or with others' values in them, or two
            answers to one question.
    """
    answers: dict[int, str] = {}
    for number, line in read_lines(path):
        if "question_id" not in line or "text" not in line:
            raise ConversionError(
                f"{path}, line {number}: keys {sorted(line)}; expected question_id and text"
            )
        question, text = line["question_id"], line["text"]
        if not isinstance(question, (int, str)) or not isinstance(text, str):
            raise ConversionError(
                f"{path}, line {number}: question_id={question!r}, text={text!r:.60}; expected a "
                "number or name, and text"
            )
        if question in answers:
            raise ConversionError(
                f"{path}, line {number}: question_id={question} for the second time; expected one "
                "answer a question"
            )
        answers[question] = text
    return answers


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name that takes the place of ``path`` when the block has ended well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: writers choose the format by it.
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def exit_status(convert: Callable[[], None]) -> int:
    """Run a conversion; its errors become one line on stderr and status 1."""
    try:
        convert()
    except (ConversionError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
