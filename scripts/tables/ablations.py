"""The paper's ablations: what each row of Tables 6 and 11 sets, and its scores; the sweeps."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hiprune import HiPruneConfig
from hiprune.config import DEFAULT_ALPHA
from scripts.benchmarks import Benchmark
from scripts.tables.paper import PAPER, PRINTED
from scripts.tables.runs import Table

PAPER_FILE = PAPER / "ablations_llava_1_5_7b_192.csv"
PAPER_COLUMNS = ("GQA", "MME", "POPE", "VizWiz")
PAPER_MODELS = {("llava-v1.5-7b", 192), ("llava-1.5-7b-hf", 192)}
ALPHAS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
# Object layers l of the sweeps, spread over the encoder; Qwen2.5-VL's windows lie between those.
LAYERS = {
    "llava": (1, 3, 5, 7, 9, 11, 13, 17, 21, 23),
    "llava_next": (1, 3, 5, 7, 9, 11, 13, 17, 21, 23),
    "qwen2_5_vl": (4, 8, 12, 16, 20, 24, 28, 32),
}


@dataclass(frozen=True)
class Row:
    """A row of a table: its name in ours, the paper's name of it, and the fields that it sets."""

    title: str
    paper: str
    fields: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class AblationTable:
    """One of the paper's tables: its number there, what it is about, its rows."""

    number: str
    about: str
    rows: tuple[Row, ...]


CROSS = Row("cross (4), default", "Cross(4) (default)")
TABLES = (
    AblationTable(
        "6a",
        "score",
        (
            Row("CLS token", "CLS Token", {"score": "cls"}),
            Row("global, default", "Global (default)"),
        ),
    ),
    AblationTable(
        "6b",
        "kinds of tokens",
        (
            Row("without registers", "w/o Register", {"registers": False}),
            Row("without buffers", "w/o Buffer", {"buffer": "none"}),
            Row("without anchors and buffers", "w/o Buffer+Anchor", {"alpha": 0.0}),
            Row("all, default", "Full (default)"),
        ),
    ),
    AblationTable(
        "6c",
        "buffers",
        (
            Row("square (8)", "Square(8)", {"buffer": "square"}),
            Row("row (2)", "Row(2)", {"buffer": "row"}),
            CROSS,
        ),
    ),
    AblationTable(
        "11",
        "buffers, all shapes",
        (
            Row("square (8)", "Square(8)", {"buffer": "square"}),
            CROSS,
            Row("diagonal (4)", "Rot-Cross(4)", {"buffer": "diagonal"}),
            Row("row (2)", "Row(2)", {"buffer": "row"}),
            Row("column (2)", "Column(2)", {"buffer": "column"}),
        ),
    ),
)


def tables(family: str) -> tuple[AblationTable, ...]:
    """Those that a family can have: Qwen2.5-VL's tower has no CLS token."""
    return tuple(t for t in TABLES if t.number != "6a" or family != "qwen2_5_vl")


def sweeps(benchmark: Benchmark, tiny: bool, object_layer: int) -> dict[str, tuple]:
    """Field -> the values that it takes, its default among them.

    Args:
        object_layer: the default l.
    """
    layers = benchmark.tiny.layers if tiny else LAYERS[benchmark.family]
    return {"alpha": ALPHAS, "object_layer": tuple(sorted({*layers, object_layer}))}


def all_fields(family: str, swept: dict[str, tuple], object_layer: int) -> list[dict[str, object]]:
    """Every setting that a table or a sweep needs, each once, the default first."""
    found: list[dict[str, object]] = [{}]
    wanted = [row.fields for table in tables(family) for row in table.rows]
    defaults = {"alpha": DEFAULT_ALPHA, "object_layer": object_layer}
    wanted += [
        {name: value}
        for name, values in swept.items()
        for value in values
        if value != defaults[name]
    ]
    for fields in wanted:
        if fields not in found:
            found.append(fields)
    return found


def paper_scores() -> dict[tuple[str, str], dict[str, float]]:
    """(table, setting) -> the paper's printed scores, and its printed average."""
    with open(PAPER_FILE, newline="", encoding="utf-8") as file:
        return {
            (row["table"], row["setting"]): {
                **{name: float(row[name]) for name in PAPER_COLUMNS},
                PRINTED: float(row["avg_printed_%(vs default)"]),
            }
            for row in csv.DictReader(file)
        }


# Key of a column -> score of the run with these fields; None where it has not finished.
Scores = Callable[[HiPruneConfig], dict[str, float] | None]


def scores_of(found: Sequence[Table], budget: int | float) -> Scores:
    """Looks a configuration up among the tables of finished runs."""

    def look_up(config: HiPruneConfig) -> dict[str, float] | None:
        table = table_of(found, config)
        return table.rows.get(budget) if table else None

    return look_up


def table_of(found: Sequence[Table], config: HiPruneConfig) -> Table | None:
    """The finished runs with a configuration, of any budget; None where there are none."""
    for table in found:
        key = (table.alpha, table.object_layer, table.variant)
        if key == (config.alpha, config.object_layer, config.variant()):
            return table
    return None
