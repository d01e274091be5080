"""Which harness and which metric each column is: the paper's, and ours."""

from __future__ import annotations

from collections.abc import Iterable

from scripts.tables.columns import COLUMNS, is_averaged, parts_of, title_of
from scripts.tables.paper import Model
from scripts.tables.sheet import Measure

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
