"""The sentences below a table: settings, averages, what is missing, how each column is measured."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from scripts.benchmarks import BENCHMARKS
from scripts.tables.columns import COLUMNS, is_averaged, parts_of, title_of
from scripts.tables.compare import VIZWIZ
from scripts.tables.paper import ALPHA, OBJECT_LAYERS, UNPRUNED, Model, short_name
from scripts.tables.runs import Table
from scripts.tables.sheet import MISSING, Measure

LMMS_EVAL = "0.7.3"  # that setup_llava.sh and setup_qwen.sh install

_SERVER = "LLaVA's own script, submission server, "
_EN, _CN = f"{_SERVER}mmbench_dev_20230712", f"{_SERVER}mmbench_dev_cn_20231003"
_VQAV2 = "LLaVA's own script, test-dev2015, EvalAI"
_OCR = "LLaVA's own script, OCR tokens in the prompt"
# Title -> family ("" for those not named) -> how the paper measured it, as far as that is known,
# and the column of ours that measures the same; None where no lmms-eval task does.
PAPER_MEASURES: dict[str, dict[str, tuple[str, str | None]]] = {
    "GQA": {"": ("lmms-eval `gqa`", "gqa")},
    "MME": {"": ("lmms-eval `mme`, perception + cognition", "mme")},
    "POPE": {"": ("lmms-eval `pope`, most likely `pope_f1_score`", "pope")},
    "SQA_IMG": {"": ("lmms-eval `scienceqa_img`", "scienceqa_img")},
    "VizWiz": {"": ("lmms-eval `vizwiz_vqa_val`", "vizwiz_vqa_val")},
    "MMB": {"": (_EN, None), "qwen2_5_vl": ("lmms-eval `mmbench_en_dev`", "mmbench_en_dev")},
    "MMB_CN": {"": (_CN, None), "qwen2_5_vl": ("lmms-eval `mmbench_cn_dev`", "mmbench_cn_dev")},
    "VQAv2": {"": (_VQAV2, None), "llava_next": (f"most likely {_VQAV2}", None)},
    "TextVQA": {"": ("lmms-eval `textvqa_val`", "textvqa_val"), "llava": (_OCR, None)},
}
OWN_SCRIPTS = {
    "VQAv2": "vqav2.sh",
    "TextVQA": "textvqa.sh",
    "MMB": "mmbench.sh",
    "MMB_CN": "mmbench_cn.sh",
}
SCRIPTS = {
    "llava": "bench_llava.sh",
    "llava_next": "bench_llava_next.sh",
    "qwen2_5_vl": "bench_qwen.sh",
}


def paper_measure(title: str, family: str) -> tuple[str, str | None]:
    """How the paper measured a column, and the key of our column that measures the same."""
    measures = PAPER_MEASURES[title]
    return measures.get(family, measures[""])


def unlike(model: Model, keys: Iterable[str]) -> frozenset[str]:
    """The titles of those of our columns that the paper measured in another way."""
    found = {key for key in keys if title_of(key) in PAPER_MEASURES}
    return frozenset(
        title_of(key) for key in found if paper_measure(title_of(key), model.family)[1] != key
    )


def of_the_paper(
    titles: Iterable[str], models: Iterable[Model], keys: Iterable[str], versions: Iterable[str]
) -> tuple[Measure, ...]:
    """A line for each of the paper's columns; where models differ, it says which is which.

    Args:
        keys: of our columns that have a score.
        versions: of lmms-eval, as the runs say.
    """
    models = list({model.family: model for model in models}.values())
    keys = set(keys)
    found = []
    for title in titles:
        ours = {model: _ours(title, model, keys, versions) for model in models}
        paper = {model: paper_measure(title, model.family)[0] for model in models}
        found.append(Measure(title, _joined(ours), _joined(paper)))
    return tuple(found)


def of_ours(keys: Iterable[str], versions: Iterable[str]) -> tuple[Measure, ...]:
    """A line for each of our columns that the paper has no number to."""
    return tuple(Measure(title_of(key), _formula(key, versions)) for key in keys)


def _ours(title: str, model: Model, keys: set[str], versions: Iterable[str]) -> str:
    same = paper_measure(title, model.family)[1]
    if same:
        return _formula(same, versions if same in keys else [LMMS_EVAL])
    text = "not measured by the bench scripts"
    if title in OWN_SCRIPTS:
        text += f" (`scripts/llava_eval/{OWN_SCRIPTS[title]}` does it the paper's way)"
    run = sorted(key for key in keys if title_of(key) == title)
    if not run:
        return text
    other = "; ".join(_formula(key, versions) for key in run)
    return f"{other}: another measure than the paper's, so not compared"


def _formula(key: str, versions: Iterable[str]) -> str:
    harness = " ".join(["lmms-eval", ", ".join(sorted(versions))]).strip()
    if key not in COLUMNS:
        task, metric = parts_of(key)
        text = f"{harness} `{task}`, `{metric}` as it is"
        return text if is_averaged(key) else f"{text}; not in the averages"
    column = COLUMNS[key]
    text = f"{harness} `{column.task}`, {column.formula}"
    return text if column.averaged else f"{text}; not in the averages"


def _joined(texts: dict[Model, str]) -> str:
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{model.name}: {text}" for model, text in texts.items())


def heading(settings: Sequence[str], limit: float | None, compared: bool, of: str) -> str:
    """The first note.

    Args:
        settings: of our runs, in words.
        compared: whether the paper's averages stand beside ours.
        of: what 100 % is.
    """
    parts = [*settings]
    if limit is not None:
        parts.append(f"LIMIT = {limit:g} samples a task: not the benchmark's score")
        if compared:
            parts.append("so no difference from the paper's numbers is taken")
    average = f"avg % is the mean of 100 * score / {of}, over so many columns as `columns` says"
    if compared:
        average += "; where ours and the paper's stand together, over those that both have"
    return "; ".join([*parts, average]) + "."


def papers_settings(models: Iterable[Model]) -> str:
    """Alpha and l of the paper's rows."""
    layers = dict.fromkeys(OBJECT_LAYERS[model.family] for model in models)
    return f"alpha = {ALPHA:g}, object layer {', '.join(map(str, layers))}"


def two_baselines(vizwiz: float | None, model: Model | None) -> list[str]:
    """What the two averages are, where a table has two.

    Args:
        vizwiz: the unpruned VizWiz that the paper prints; None where there is one average.
    """
    if vizwiz is None or model is None:
        return []
    return [
        f"The paper's unpruned VizWiz, {vizwiz:.1f}, is of the test-dev split, its pruned rows are "
        f"of val: the first avg % takes the paper's VizWiz of {model.vizwiz_val}, unpruned on val, "
        f"and ours of our own; the second takes both of {vizwiz:.1f}, as the paper's average does. "
        "The two unpruned VizWiz have no difference."
    ]


def probably_test(rows: dict[Model, dict]) -> str:
    """On what is marked: the paper's unpruned VizWiz that is of another split, as it seems.

    Args:
        rows: model -> budget -> the paper's scores.
    """
    return " ".join(
        f"The paper's unpruned VizWiz of {model.name}, {scores[UNPRUNED][VIZWIZ]:.1f}, is probably "
        "of the test split, its pruned rows (up to "
        f"{max(row[VIZWIZ] for budget, row in scores.items() if budget != UNPRUNED):.1f}) of val: "
        "LLaVA's own `docs/MODEL_ZOO.md` (github.com/haotian-liu/LLaVA) has the same number for "
        f"`{short_name(model.checkpoints[0])}`, and its `docs/Evaluation.md` takes VizWiz's test "
        "split. Unpruned VizWiz on val is not known: the averages that are marked take this one, "
        "and the two unpruned VizWiz have no difference."
        for model, scores in rows.items()
        if model.vizwiz_test
    )


def missing(
    pairs: Iterable[tuple[Model, Table | None]], rows: dict[Model, dict], limit: float | None
) -> str:
    """What a dash is, and the commands that fill those which the bench scripts can.

    Args:
        pairs: a model of the table, and what has run of it.
        rows: model -> budget -> the paper's scores.
        limit: samples a task of the runs.
    """
    commands = []
    for model, run in pairs:
        wanted = {title for title in rows[model][UNPRUNED] if _is_measured(title, model)}
        for budget in rows[model]:
            if wanted - {title_of(key) for key in (run.rows.get(budget, ()) if run else ())}:
                checkpoint = run.checkpoint if run else model.checkpoints[0]
                commands.append(_command(model, checkpoint, limit))
    return dash(commands)


def dash(commands: Iterable[str]) -> str:
    """What a dash is, and the commands that fill dashes of ours."""
    text = f"{MISSING}: not run, or not printed in the paper."
    listed = ", ".join(f"`{command}`" for command in dict.fromkeys(commands))
    return f"{text} What is missing of ours comes of {listed}." if listed else text


def variables(checkpoint: str, default: str, limit: float | None) -> list[str]:
    """The variables of a bench script by which it goes on with the same checkpoint and limit."""
    found = [] if checkpoint == default else [f"CKPT={shlex.quote(checkpoint)}"]
    return found + ([] if limit is None else [f"LIMIT={limit:g}"])


def is_hf(checkpoint: str) -> bool:
    """Whether a checkpoint of LLaVA is one of transformers' own."""
    return short_name(checkpoint).endswith("-hf")


def _command(model: Model, checkpoint: str, limit: float | None) -> str:
    hf = is_hf(checkpoint)
    default = BENCHMARKS[f"{model.family}_hf" if hf else model.family].checkpoint
    parts = [*variables(checkpoint, default, limit), model.variables, "bash"]
    return " ".join([part for part in parts if part] + [SCRIPTS[model.family]] + ["--hf"] * hf)


def unread(runs: Iterable[Table]) -> list[str]:
    """Tasks that ran and fill no cell, and those whose scores are drawn in part."""
    runs = list(runs)
    tasks = sorted({f"`{task}`" for run in runs for task in run.unread})
    found = []
    if tasks:
        found.append(
            f"Ran, but the results hold no metric of the task's columns: {', '.join(tasks)}."
        )
    drawn = [f"{where} ({n} answers)" for run in runs for where, n in run.drawn.items()]
    if drawn:
        found.append(
            f"Partly chance: {', '.join(drawn)}. No rule read these answers and no GPT model was "
            "reached, so lmms-eval drew a letter for each."
        )
    return found


def _is_measured(title: str, model: Model) -> bool:
    """Whether a task of the bench scripts measures a column as the paper did."""
    return title in PAPER_MEASURES and paper_measure(title, model.family)[1] is not None
