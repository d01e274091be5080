"""What is evaluated: the families' checkpoints, tasks and budgets, and the columns they fill."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Benchmark:
    """One bench_*.sh: the defaults of its variables."""

    family: str  # as HiPruneConfig.from_env names it
    model: str  # lmms-eval's name of our model
    checkpoint: str
    tasks: tuple[str, ...]
    retentions: tuple[int | float, ...]
    tiny_checkpoint: str
    retention_variable: str = "HIPRUNE_RETENTION"
    dtype: str = "float16"  # on a GPU: of the released weights, and of lmms-eval's stock model


BENCHMARKS = {
    "llava": Benchmark(
        family="llava",
        model="llava_hiprune",
        checkpoint="liuhaotian/llava-v1.5-7b",
        tasks=("gqa", "mme", "pope", "scienceqa_img", "vizwiz_vqa_val"),
        retentions=(192, 128, 64),
        tiny_checkpoint="llava-v1.5-tiny",
    ),
    "llava_next": Benchmark(
        family="llava_next",
        model="llava_hiprune",
        checkpoint="liuhaotian/llava-v1.6-vicuna-7b",
        tasks=("pope", "scienceqa_img", "vizwiz_vqa_val"),
        retentions=(640, 320, 160),
        tiny_checkpoint="llava-v1.6-tiny",
    ),
    "llava_hf": Benchmark(
        family="llava",
        model="llava_hf_hiprune",
        checkpoint="llava-hf/llava-1.5-7b-hf",
        tasks=("gqa", "mme", "pope", "scienceqa_img", "vizwiz_vqa_val"),
        retentions=(192, 128, 64),
        tiny_checkpoint="llava-1.5-tiny-hf",
    ),
    "llava_next_hf": Benchmark(
        family="llava_next",
        model="llava_hf_hiprune",
        checkpoint="llava-hf/llava-v1.6-vicuna-7b-hf",
        tasks=("pope", "scienceqa_img", "vizwiz_vqa_val"),
        retentions=(640, 320, 160),
        tiny_checkpoint="llava-v1.6-tiny-hf",
    ),
    # The processor's limits, 256 * 28 * 28 to 1605632 pixels, are the model class's defaults.
    "qwen2_5_vl": Benchmark(
        family="qwen2_5_vl",
        model="qwen2_5_vl_hiprune",
        checkpoint="Qwen/Qwen2.5-VL-3B-Instruct",
        tasks=("mmbench_en_dev", "mmbench_cn_dev", "pope", "scienceqa_img", "vizwiz_vqa_val"),
        retentions=(0.334, 0.223, 0.112),
        tiny_checkpoint="qwen2.5-vl-tiny",
        retention_variable="HIPRUNE_QWEN_RETENTION",
        dtype="bfloat16",
    ),
}


@dataclass(frozen=True)
class Column:
    """How one lmms-eval task becomes a column of the paper's tables.

    Attributes:
        title: the paper's name, as the CSV files under results/paper have it.
        metrics: lmms-eval's, summed (MME counts perception plus cognition).
        scale: lmms-eval's unit -> the paper's.
    """

    title: str
    metrics: tuple[str, ...]
    scale: float = 100.0


COLUMNS = {
    "gqa": Column("GQA", ("exact_match",)),
    "mme": Column("MME", ("mme_perception_score", "mme_cognition_score"), scale=1.0),
    "pope": Column("POPE", ("pope_f1_score",)),
    "scienceqa_img": Column("SQA_IMG", ("exact_match",)),
    "mmbench_en_dev": Column("MMB", ("gpt_eval_score",), scale=1.0),
    "mmbench_cn_dev": Column("MMB_CN", ("gpt_eval_score",), scale=1.0),
    "vizwiz_vqa_val": Column("VizWiz", ("exact_match",)),
    "hiprune_tiny": Column("tiny (accuracy)", ("pope_accuracy",)),
}
