"""Data of the paper's eight tasks: the real columns, pictures and questions of the small task.

Of each question there is also an answer to prescribe, so that no task's score is 0 or the best. The
scores that these give are in :data:`SCORES`, counted by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Image

from scripts.tiny.task import questions

OWNER = "lmms-lab-encoder"  # of the data sets that lmms-eval 0.7.3 asks for
SCENES = 10


@dataclass(frozen=True)
class Part:
    """A split of a data set.

    Attributes:
        rows: its columns, and "said", the answer to prescribe.
        task: lmms-eval's; "" where no task asks it.
    """

    task: str
    name: str
    config: str
    split: str
    rows: list[dict[str, Any]]


# In the paper's unit, of the prescribed answers.
SCORES = {
    "gqa": 40.0,  # 2 of 5
    "mme": 175.0 + 200.0,  # existence (200 + 50) / 2, colour 50; commonsense 200, code 0
    "pope": 100 * 2 / 3,  # 2 of 3 found, one too many; the accuracy is 3 of 6
    "scienceqa_img": 60.0,  # 3 of 5
    "vizwiz_vqa_val": 56.0,  # (1 + 0.9 + 0.3 + 0.6 + 0) / 5
    "textvqa_val": 72.5,  # (1 + 0.9 + 0 + 1) / 4
    "mmbench_en_dev": 50.0,  # 3 of 6, one of them by the second of two letters that are drawn
    "mmbench_cn_dev": 75.0,  # 3 of 4
}


def make_data(folder: Path, family: str) -> dict[str, list[dict[str, Any]]]:
    """Write the data sets, as the hub has them; task -> its rows, without pictures."""
    images = folder / "images"
    images.mkdir(parents=True)
    asked = list(questions(family, SCENES, 7, images))
    seen = [row for row in asked if row["kind"] == "existence"]
    named = [row for row in asked if row["kind"] in ("colour", "shape")]
    parts = [*_gqa(named), _mme(seen), _pope(seen), _scienceqa(seen)]
    parts += [_vizwiz(named), _textvqa(named), *(_mmbench(named, part) for part in ("en", "cn"))]
    for part in parts:
        _write(folder / "hub" / OWNER / part.name, part)
    for name in dict.fromkeys(part.name for part in parts):
        _card(folder / "hub" / OWNER / name, [part for part in parts if part.name == name])
    return {
        part.task: [{k: v for k, v in row.items() if k != "image"} for row in part.rows]
        for part in parts
        if part.task
    }


def _gqa(named: list[dict]) -> Iterator[Part]:
    said = ["{}", " {}.", "zebra", "a {} thing", ""]
    rows = [
        {
            "id": str(20000 + i),
            "imageId": f"n{i}",
            "question": row["question"],
            "answer": row["answer"].lower(),
            "fullAnswer": f"{row['answer']}.",
            "isBalanced": True,
            "semanticStr": "",
            "said": said[i].format(row["answer"]).strip(),
        }
        for i, row in enumerate(named[: len(said)])
    ]
    yield Part("gqa", "GQA", "testdev_balanced_instructions", "testdev", rows)
    pictures = [{"id": f"n{i}", "image": row["image"]} for i, row in enumerate(named[: len(said)])]
    yield Part("", "GQA", "testdev_balanced_images", "testdev", pictures)


def _mme(seen: list[dict]) -> Part:
    """Two questions a picture; in each pair one is of what is not there."""
    pairs = [
        ("existence", ("right", "No, there is none")),
        ("existence", ("right", "Yes")),
        ("color", ("perhaps", "no.")),
        ("commonsense_reasoning", ("right", "No")),
        ("code_reasoning", ("wrong", "yes")),
    ]
    rows = []
    for i, (category, said) in enumerate(pairs):
        other = {"Yes": "No", "No": "Yes"}[seen[i]["answer"]]
        first = {"right": seen[i]["answer"], "wrong": other}.get(said[0], said[0])
        both = [(seen[i]["question"], seen[i]["answer"], first)]
        both += [("Is there a black zebra in the image?", "No", said[1])]
        rows += [
            {
                "question_id": f"{category}/{i:04}.png",
                "image": seen[i]["image"],
                "question": f"{question} Please answer yes or no.",
                "answer": answer,
                "category": category,
                "said": one,
            }
            for question, answer, one in both
        ]
    return Part("mme", "MME", "default", "test", rows)


def _pope(seen: list[dict]) -> Part:
    said = {"Yes": ["Yes", " yes", "no"], "No": ["no", "Yes", "yes it is"]}
    asked = [
        (row, one)
        for answer in said
        for row, one in zip([r for r in seen if r["answer"] == answer], said[answer], strict=False)
    ]
    rows = [
        {
            "id": str(i),
            "question_id": str(i + 1),
            "question": row["question"],
            "answer": row["answer"].lower(),
            "image_source": f"COCO_val2014_{i:012}",
            "image": row["image"],
            "category": "adversarial",
            "said": one,
        }
        for i, (row, one) in enumerate(asked)
    ]
    return Part("pope", "POPE", "default", "test", rows)


def _scienceqa(seen: list[dict]) -> Part:
    said = ["{}", "{}", "{}. of course", "E", "the first"]
    rows = [
        {
            "image": row["image"],
            "question": row["question"],
            "choices": ["yes", "no", "perhaps"][: 2 + i % 2],
            "answer": 0 if row["answer"] == "Yes" else 1,
            "hint": "" if i % 2 else "The drawing has shapes.",
            **dict.fromkeys(("task", "grade", "subject", "topic"), "closed choice"),
            **dict.fromkeys(("category", "skill", "lecture", "solution"), "none"),
            "said": said[i].format("A" if row["answer"] == "Yes" else "B"),
        }
        for i, row in enumerate(seen[: len(said)])
    ]
    rows[1]["said"] = rows[1]["said"].lower()
    return Part("scienceqa_img", "ScienceQA", "ScienceQA-IMG", "test", rows)


def _answers(row: dict, right: int) -> list[str]:
    """Of ten people, so many of whom could answer."""
    return [row["answer"].lower()] * right + ["unanswerable"] * (10 - right)


def _vizwiz(named: list[dict]) -> Part:
    said = [(10, "The {}."), (3, "{}"), (1, "{}"), (2, "{}"), (0, "zebra")]
    rows = [
        {
            "question_id": f"VizWiz_val_{i:08}",
            "image": row["image"],
            "question": row["question"].lower(),
            "answers": _answers(row, right),
            "category": "other",
            "said": one.format(row["answer"]),
        }
        for i, (row, (right, one)) in enumerate(zip(named, said, strict=False))
    ]
    return Part("vizwiz_vqa_val", "VizWiz-VQA", "default", "val", rows)


def _textvqa(named: list[dict]) -> Part:
    said = [(10, "{}"), (3, "a {}"), (10, "stop"), (2, "Unanswerable")]
    rows = [
        {
            "image_id": f"im{i}",
            "question_id": 34602 + i,
            "question": row["question"].lower(),
            "image": row["image"],
            "answers": _answers(row, right),
            "set_name": "val",
            "said": one.format(row["answer"]),
        }
        for i, (row, (right, one)) in enumerate(zip(named, said, strict=False))
    ]
    return Part("textvqa_val", "textvqa", "default", "validation", rows)


def _mmbench(named: list[dict], language: str) -> Part:
    """A question asked twice, its options turned, is a hit if both answers are."""
    asked = [  # place of the right option in each round, and the answers
        ([1, 0], ["B", "A."]),
        ([2, 1], ["C", "B" if language == "cn" else "(D)"]),
        ([0], ["It is {}"]),
        ([3], ["A"]),
        *([] if language == "cn" else [([2], ["well"]), ([3], ["well"])]),  # drawn: E and D
    ]
    rows = []
    for i, (places, said) in enumerate(asked):
        for turn, (place, one) in enumerate(zip(places, said, strict=True)):
            options = ["zebra", "window", "nan" if i == 3 else "lamp"]
            options.insert(place, named[i]["answer"].lower())
            rows.append(
                {
                    "index": i + turn * 1_000_000,
                    "question": named[i]["question"],
                    "hint": "nan" if i % 2 else "Look at it.",
                    "answer": "ABCD"[place],
                    **dict(zip("ABCD", options, strict=True)),
                    "category": "attribute_recognition",
                    "image": named[i]["image"],
                    "source": "none",
                    "L2-category": "finegrained",
                    "comment": "nan",
                    "split": "dev",
                    "said": one.format(named[i]["answer"]),
                }
            )
    return Part(f"mmbench_{language}_dev", "MMBench", language, "dev", rows)


def _write(folder: Path, part: Part) -> None:
    columns = {
        name: [_picture(row[name]) if name == "image" else row[name] for row in part.rows]
        for name in part.rows[0]
        if name != "said"
    }
    data = Dataset.from_dict(columns)
    if "image" in columns:
        data = data.cast_column("image", Image())
    file = folder / part.config / f"{part.split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(file)


def _picture(path: str) -> dict[str, object]:
    return {"bytes": Path(path).read_bytes(), "path": Path(path).name}


def _card(folder: Path, parts: list[Part]) -> None:
    """What tells ``datasets`` which file is which."""
    lines = ["---", "configs:"]
    for part in parts:
        lines += [f"- config_name: {part.config}", "  data_files:", f"  - split: {part.split}"]
        lines += [f"    path: {part.config}/{part.split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
