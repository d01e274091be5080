"""Logs as finished runs leave them, for the tests of the tables; readers of what they check."""

import csv
import json
from pathlib import Path

from scripts.tables.render import to_markdown

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = "liuhaotian/llava-v1.5-7b"
# lmms-eval's metrics, in lmms-eval's units, and the cell that they become.
SCORES = {
    "gqa": ({"exact_match,none": 0.5914, "exact_match_stderr,none": 0.01}, "59.1"),
    "mme": ({"mme_cognition_score,none": 312.5, "mme_perception_score,none": 1502.25}, "1814.8"),
    "pope": ({"pope_accuracy,none": 0.5, "pope_f1_score,none": 0.8612}, "86.1"),
    "scienceqa_img": ({"exact_match,none": 0.6886}, "68.9"),
    "vizwiz_vqa_val": ({"exact_match,none": 0.545, "submission,none": None}, "54.5"),
}
TITLES = ["GQA", "MME", "POPE", "SQA_IMG", "VizWiz"]


class Logs:
    """Writes results files in lmms-eval's shape into a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir()

    def write(self, task, metrics, budget=None, folder=None, **changes):
        """One run: unpruned without a budget; ``changes`` of what it says of itself."""
        pruned = budget is not None
        record = {
            "pruned": pruned,
            "retention": budget,
            "alpha": changes.get("alpha", 0.1) if pruned else None,
            "object_layer": changes.get("object_layer", 9) if pruned else None,
            "variant": changes.get("variant", {}) if pruned else {},
            "checkpoint": changes.get("checkpoint", CHECKPOINT),
            "images": changes.get("images", 10),
            "visual_tokens_per_image": changes.get("tokens", budget if pruned else 576.0),
            "versions": {"lmms_eval": changes.get("version", "0.7.3")},
        }
        record |= {"letters_drawn": changes["drawn"]} if "drawn" in changes else {}
        record |= {"run": changes["run"]} if "run" in changes else {}
        result = {
            "results": {task: {"alias": task, "samples": 9, **metrics}},
            "config": {"limit": changes.get("limit")},
            "date": changes.get("date", "20260102_030405"),
            "hiprune": record,
        }
        if "more" in changes:  # the tasks of a group
            result["results"] |= changes["more"]
            result["group_subtasks"] = {task: list(changes["more"])}
        path = self.folder / (folder or str(len(list(self.folder.rglob("*_results.json")))))
        path.mkdir(parents=True)
        (path / "20260102_030405_results.json").write_text(json.dumps(result))

    def write_all(self, *budgets, **changes):
        """Every task of SCORES at each of these budgets; None is unpruned."""
        for task, (metrics, _) in SCORES.items():
            for budget in budgets:
                self.write(task, metrics, budget, **changes)


def in_the_csv(table, **chosen):
    """The only row of a file under results/paper that has these values, as text."""
    with open(ROOT / "results" / "paper" / table, newline="", encoding="utf-8") as file:
        (row,) = (
            row
            for row in csv.DictReader(file)
            if all(row[column] == value for column, value in chosen.items())
        )
    return row


def numbers(row, titles):
    """Those of a row's cells that hold a number."""
    return {title: float(row[title]) for title in titles if row.get(title)}


def parse_markdown(text):
    """Tables in order: (rows of cells without the dashes, all lines that are no row)."""
    found = []
    for section in text.split("### ")[1:]:
        lines = ["### " + section.splitlines()[0], *section.splitlines()[1:]]
        rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
        rows = [[cell.strip() for cell in row] for row in rows]
        assert set("".join(rows.pop(1))) == {"-"}
        assert len({len(row) for row in rows}) == 1
        found.append((rows, [line for line in lines if line and not line.startswith("|")]))
    return found


def read(sheets):
    """Sheets as a reader finds them in the Markdown."""
    return parse_markdown("\n\n".join(map(to_markdown, sheets)))


def titles(sheets):
    return [(sheet.number, sheet.title, sheet.limit) for sheet in sheets]


def rows_of(sheet):
    """(group, label, kind or other method) -> title of a column -> number."""
    found = {}
    for block in sheet.blocks:
        for row in block.rows:
            name = row.name if row.kind == "other" else row.kind
            headings = (heading.title for heading in sheet.headings)
            found[block.group, block.label, name] = dict(zip(headings, row.cells, strict=True))
    return found
