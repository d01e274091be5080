"""Scores of the paper's eight tasks from answers, without lmms-eval's code, in the paper's unit."""

from __future__ import annotations

import random
import re
from statistics import mean
from typing import Any

Rows = list[dict[str, Any]]
MMBENCH_SEED = 2680  # of the letters that lmms-eval draws
PERCEPTION = ("existence", "color")  # the categories of the stand-in data that are not cognition


def score(task: str, rows: Rows, answers: list[str]) -> float:
    """Of a task's rows (standin.data) and an answer to each."""
    if task == "mme":
        return _mme(rows, answers)
    if task == "pope":
        return _pope_f1(rows, answers)
    if task.startswith("mmbench"):
        return _mmbench(rows, answers)[0]
    one = {"gqa": _is_word, "scienceqa_img": _is_choice}.get(task, _agreement)
    return 100 * mean(one(row, answer) for row, answer in zip(rows, answers, strict=True))


def letters_drawn(rows: Rows, answers: list[str]) -> int:
    """Of MMBench."""
    return _mmbench(rows, answers)[1]


def _is_word(row: dict, answer: str) -> bool:
    return re.sub(r"[^\w\s]", "", answer).lower() == row["answer"]


def _is_choice(row: dict, answer: str) -> bool:
    right, answer = "ABC"[row["answer"]], answer.strip()
    if len(answer) > 1 and answer[1] == "." and answer[0].isupper():
        return answer[0] == right
    return answer.upper() == right


def _agreement(row: dict, answer: str) -> float:
    """The mean over nine of the ten people, each left out once: three who agree are enough."""
    words = re.sub(r"[.,?!]", "", answer.lower()).split()
    said = " ".join(word for word in words if word not in ("a", "an", "the"))
    people = row["answers"]
    return mean(min(1, (people[:i] + people[i + 1 :]).count(said) / 3) for i in range(len(people)))


def _mme(rows: Rows, answers: list[str]) -> float:
    """Per category the mean over pictures of 100 x accuracy, and 100 more where both are right."""
    pictures: dict[str, dict[str, list[bool]]] = {}
    for row, answer in zip(rows, answers, strict=True):
        found = re.search("yes|no", answer.lower().strip().replace(".", "")[:4])
        right = found is not None and found[0] == row["answer"].lower()
        of_category = pictures.setdefault(row["category"], {})
        of_category.setdefault(row["question_id"], []).append(right)
    return sum(
        mean(50 * sum(pair) + 100 * all(pair) for pair in of_category.values())
        for of_category in pictures.values()
    )


def _pope_f1(rows: Rows, answers: list[str]) -> float:
    pairs = [(row["answer"], one.strip().lower()) for row, one in zip(rows, answers, strict=True)]
    hits = pairs.count(("yes", "yes"))
    wrong = pairs.count(("no", "yes")) + pairs.count(("yes", "no"))
    return 100 * 2 * hits / (2 * hits + wrong) if hits else 0.0


def _mmbench(rows: Rows, answers: list[str]) -> tuple[float, int]:
    """The score and how many letters are drawn: as soon as a round of a question is wrong, its
    others are not looked at."""
    draw, drawn, hits = random.Random(MMBENCH_SEED), 0, []
    read = [_letter(row, answer) for row, answer in zip(rows, answers, strict=True)]
    for question in sorted({row["index"] % 1_000_000 for row in rows}):
        rounds = [
            (letter, row["answer"])
            for row, letter in zip(rows, read, strict=True)
            if row["index"] % 1_000_000 == question
        ]
        hit = all(letter in (None, right) for letter, right in rounds)
        for letter, right in rounds:
            if hit and letter is None:
                drawn += 1
                hit = "ABCDE"[draw.randint(0, 4)] == right
        hits.append(hit)
    return 100 * mean(hits), drawn


def _letter(row: dict, answer: str) -> str | None:
    """What a rule can read: one letter that stands alone, or the text of one option."""
    letters = set(re.findall(r"(?<!\w)[A-E](?!\w)", answer))
    if len(letters) == 1:
        return letters.pop()
    named = [letter for letter in "ABCD" if row[letter].lower() in answer.lower()]
    return named[0] if len(named) == 1 else None
