"""What lmms-eval calls for the task of --tiny; copied beside the task file, so it stands alone."""

from __future__ import annotations

from PIL import Image

KINDS = ("colour", "shape", "count", "position")


def doc_to_visual(doc: dict) -> list:
    """The scene."""
    with Image.open(doc["image"]) as image:
        return [image.convert("RGB")]


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """The question."""
    return doc["question"]


def process_results(doc: dict, results: list[str]) -> dict[str, tuple[str, str, str]]:
    """Every metric gets every (kind, answer, right answer), and takes those of its kind."""
    answer = results[0].strip().rstrip(".").lower()
    entry = (doc["kind"], answer, doc["answer"].lower())
    return {name: entry for name in ("existence_accuracy", "existence_f1", *KINDS)}


def existence_accuracy(entries: list) -> float:
    """Share of the yes-or-no questions that are answered rightly, as POPE counts."""
    return _accuracy(entries, "existence")


def existence_f1(entries: list) -> float:
    """F1 of "yes", as of POPE; an answer that is neither yes nor no counts as no."""
    asked = [
        (answer == "yes", right == "yes") for kind, answer, right in entries if kind == "existence"
    ]
    hits = sum(said and true for said, true in asked)
    said, true = sum(said for said, _ in asked), sum(true for _, true in asked)
    return 2 * hits / (said + true) if said + true else 0.0


def colour(entries: list) -> float:
    return _accuracy(entries, "colour")


def shape(entries: list) -> float:
    return _accuracy(entries, "shape")


def count(entries: list) -> float:
    return _accuracy(entries, "count")


def position(entries: list) -> float:
    return _accuracy(entries, "position")


def _accuracy(entries: list, kind: str) -> float:
    hits = [answer == right for its_kind, answer, right in entries if its_kind == kind]
    return sum(hits) / len(hits) if hits else float("nan")
