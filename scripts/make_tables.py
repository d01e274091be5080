"""Tables from the logs of bench_*.sh: a row a budget, a column a task, the paper's row under ours.

python scripts/make_tables.py logs
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import COLUMNS, Column
from paper import UNPRUNED, VIZWIZ_VAL, paper_rows, short_name

MISSING = "–"


@dataclass
class Table:
    """Our scores of one checkpoint with one alpha, l, variant of the method and limit.

    Attributes:
        variant: what differs from the paper's method, as HiPruneConfig.variant tells it.
        rows: "unpruned" or N' -> task -> score in the paper's unit.
        counts: the same keys -> task -> images, and visual tokens per image.
    """

    checkpoint: str
    alpha: float
    object_layer: int
    limit: float | None
    variant: dict[str, object] = field(default_factory=dict)
    rows: dict[int | float | str, dict[str, float]] = field(default_factory=dict)
    counts: dict[int | float | str, dict[str, tuple[int, float]]] = field(default_factory=dict)

    def tokens(self, budget: int | float | str) -> float | None:
        """Visual tokens per image that reached the language model, over all tasks of a row."""
        counts = self.counts.get(budget, {}).values()
        images = sum(n for n, _ in counts)
        return sum(n * tokens for n, tokens in counts) / images if images else None


def read_tables(logs: Path) -> list[Table]:
    """All tables that the finished runs under ``logs`` make; the newest of equal runs counts."""
    results = [
        json.loads(path.read_text())
        for path in sorted(logs.rglob("*_results.json"))
        if not any(part.endswith((".running", ".failed")) for part in path.relative_to(logs).parts)
    ]
    results = sorted((r for r in results if "hiprune" in r), key=lambda r: r["date"])
    tables: dict[tuple, Table] = {}
    for result in results:
        record = result["hiprune"]
        if record["pruned"]:
            variant = record.get("variant", {})
            settings = (record["alpha"], record["object_layer"])
            key = (*_run_key(result), *settings, *variant.items())
            table = Table(record["checkpoint"], *settings, key[1], variant)
            table = tables.setdefault(key, table)
            _add(table, record["retention"], result)
    baselines = [result for result in results if not result["hiprune"]["pruned"]]
    for result in baselines:
        mates = [table for key, table in tables.items() if key[:2] == _run_key(result)]
        if not mates:  # nothing but the baseline has run so far
            key = (*_run_key(result), None, None)
            mates = [tables.setdefault(key, Table(key[0], None, None, key[1]))]
        for table in mates:
            _add(table, UNPRUNED, result)
    return list(tables.values())


def _run_key(result: dict) -> tuple:
    return result["hiprune"]["checkpoint"], result["config"]["limit"]


def _add(table: Table, budget: int | float | str, result: dict) -> None:
    for task, metrics in result["results"].items():
        score = _score(task, metrics)
        if score is not None:
            table.rows.setdefault(budget, {})[task] = score
        record = result["hiprune"]
        if record["images"]:
            found = (record["images"], record["visual_tokens_per_image"])
            table.counts.setdefault(budget, {})[task] = found


def _score(task: str, metrics: dict) -> float | None:
    """One task's results as lmms-eval writes them -> the paper's number."""
    # "metric,filter" are the keys; of an unknown task, the first metric that is a number.
    values = {key.split(",")[0]: value for key, value in metrics.items()}
    column = COLUMNS.get(task) or Column(task, _first_metric(values), scale=1.0)
    if not column.metrics or any(metric not in values for metric in column.metrics):
        return None
    return column.scale * sum(values[metric] for metric in column.metrics)


def _first_metric(values: dict) -> tuple[str, ...]:
    numbers = [
        key
        for key, value in values.items()
        if isinstance(value, (int, float)) and "stderr" not in key and key != "samples"
    ]
    return tuple(numbers[:1])


def render(table: Table) -> str:
    """Markdown: our rows, the paper's under each, the average as % of the unpruned row."""
    tasks = [task for task in COLUMNS if any(task in row for row in table.rows.values())]
    tasks += sorted({task for row in table.rows.values() for task in row} - set(tasks))
    titles = [COLUMNS[task].title if task in COLUMNS else task for task in tasks]
    ours = {
        budget: {title: row[task] for task, title in zip(tasks, titles, strict=True) if task in row}
        for budget, row in table.rows.items()
    }
    # The paper has its rows of the method itself; of what differs it has other tables.
    paper = {} if table.variant else paper_rows(table.checkpoint)
    name = short_name(table.checkpoint)
    paper_base = dict(paper.get(UNPRUNED, {}))
    if "VizWiz" in paper_base:
        paper_base["VizWiz"] = VIZWIZ_VAL.get(name, paper_base["VizWiz"])

    header = ["tokens", "", *titles, "avg %", "tokens in the LLM"]
    lines = [header, ["---"] * len(header)]
    budgets = sorted(ours, key=lambda b: -float("inf") if b == UNPRUNED else -b)
    for budget in budgets:
        tokens = table.tokens(budget)
        reached = MISSING if tokens is None else f"{tokens:.1f}"
        cells = _cells(ours[budget], ours.get(UNPRUNED), titles)
        lines.append([str(budget), "ours", *cells, reached])
        if budget in paper:
            cells = _cells(paper[budget], paper_base, titles)
            lines.append(["", "paper", *cells, MISSING])
    notes = [_settings(table)]
    if "VizWiz" in titles and name in VIZWIZ_VAL:
        notes.append(
            f"The paper's unpruned VizWiz is of the test-dev split, its pruned rows of val: the "
            f"paper's avg % here is taken of {VIZWIZ_VAL[name]}, unpruned on val."
        )
    title = f"### {name}"
    return "\n".join([title, "", *align(lines), "", *notes])


def _cells(row: dict[str, float], base: dict[str, float] | None, titles: list[str]) -> list[str]:
    cells = [f"{row[title]:.1f}" if title in row else MISSING for title in titles]
    shared = [title for title in titles if title in row and base and base.get(title)]
    # An average over fewer tasks than the row shows would be another number under the same name.
    if not shared or len(shared) != sum(title in row for title in titles):
        return [*cells, MISSING]
    return [*cells, f"{sum(100 * row[t] / base[t] for t in shared) / len(shared):.1f}"]


def _settings(table: Table) -> str:
    parts = []
    if table.alpha is not None:
        parts.append(f"alpha = {table.alpha:g}, object layer {table.object_layer}")
    parts += [f"{name} = {value}" for name, value in table.variant.items()]
    if table.limit is not None:
        parts.append(f"LIMIT = {table.limit:g} samples a task: not the benchmark's score")
    return "; ".join([*parts, "avg % is the mean of 100 * score / unpruned score"]) + "."


def align(lines: list[list[str]]) -> list[str]:
    """Cells -> lines of Markdown with equal widths; a line of dashes parts the header."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        if line[0] != "---"
        else "|" + "|".join("-" * (w + 2) for w in widths) + "|"
        for line in lines
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("logs", type=Path, help="a folder that a bench script wrote to")
    args = parser.parse_args()
    if not args.logs.is_dir():
        parser.error(f"logs={str(args.logs)!r}: no such folder")
    tables = read_tables(args.logs)
    if not tables:
        parser.error(f"logs={str(args.logs)!r}: holds no finished run of a bench script")
    print("\n\n".join(render(table) for table in tables))


if __name__ == "__main__":
    main()
