"""Answers to MMBench -> the xlsx file that its submission server takes.

    python -m scripts.llava_eval.convert_mmbench --questions mmbench_dev_20230712.tsv \
        --answers answers.jsonl --output upload.xlsx

The server reads the table of the questions, without the images, and a column ``prediction``.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pandas as pd

from scripts.llava_eval.answers import ConversionError, exit_status, read_answers, replacing

COLUMNS = ("index", "question", "A", "B", "C", "D", "prediction")
# Kept where the split has them; the server scores with its own copy.
OPTIONAL = ("answer", "category", "l2-category", "split")
# Characters that a cell of an xlsx file cannot hold (XML 1.0); a model may well write one.
FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def convert(questions: Path, answers: Path, output: Path) -> None:
    """Write ``output``, a row a question in the order of ``questions``.

    Raises:
        ConversionError: a question without an answer, or an answer to no question of the split.
    """
    # Every cell as it stands: "None" and "NA" are options of some questions.
    table = pd.read_csv(questions, sep="\t", dtype=str, keep_default_na=False)
    missing = [name for name in COLUMNS[:-1] if name not in table.columns]
    if missing:
        raise ConversionError(f"{questions}: no column {', '.join(missing)}; expected MMBench's")
    table["index"] = table["index"].astype(int)
    found = read_answers(answers)
    _check_same_questions(set(table["index"]), set(found), questions, answers)
    table["prediction"] = table["index"].map(found)
    table = table[[*COLUMNS, *(name for name in OPTIONAL if name in table.columns)]]
    for name in table.columns.drop("index"):
        table[name] = table[name].map(lambda text: FORBIDDEN.sub("", text))
    with replacing(output) as part, pd.ExcelWriter(part, engine="openpyxl") as writer:
        table.to_excel(writer, index=False)
        for row in writer.sheets["Sheet1"].iter_rows(min_row=2):
            for cell in row:
                if cell.data_type == "f":  # openpyxl takes a text such as "=2" for a formula
                    cell.data_type = "s"
    print(f"{output}: {len(table)} predictions")


def _check_same_questions(asked: set, answered: set, questions: Path, answers: Path) -> None:
    if asked - answered:
        raise ConversionError(
            f"{answers}: no answer to {len(asked - answered)} of the {len(asked)} questions of "
            f"{questions}, the first is {min(asked - answered, key=str)}; expected one for each"
        )
    if answered - asked:
        raise ConversionError(
            f"{answers}: {len(answered - asked)} answers to questions that {questions} does not "
            f"have, the first is {min(answered - asked, key=str)}; expected the split's own"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=Path, required=True, help="the split's TSV")
    parser.add_argument("--answers", type=Path, required=True, help="jsonl of model_vqa_mmbench")
    parser.add_argument("--output", type=Path, required=True, help="xlsx to write")
    args = parser.parse_args()
    return exit_status(lambda: convert(args.questions, args.answers, args.output))


if __name__ == "__main__":
    sys.exit(main())
