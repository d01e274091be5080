"""What is evaluated: the families' checkpoints, tasks and budgets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


ASSETS = ROOT / "assets"
TINY = ROOT / ".tiny"  # what is made of the assets


@dataclass(frozen=True)
class Tiny:
    """The --tiny of a benchmark: a small trained model and what takes the place of the defaults.

    Attributes:
        asset: folder under assets/, in transformers' format.
        scenes: the family whose drawings its task asks about (scripts/tiny/scenes.py).
        checkpoint: what is evaluated, the asset or what is made of it.
        object_layer: l, as deep in the small tower as the paper's in the real one.
        retentions: the paper's shares of the model's tokens: a third, 2/9 and a ninth.
        curve: those, a half before and half a ninth after them.
        layers: of the ablation's sweep over l.
        model_args: for lmms-eval's model, beside those of every run.
        engine_args: of vLLM, where it answers: what a few cores of a CPU have room for.
    """

    asset: str
    scenes: str
    checkpoint: Path
    object_layer: int
    retentions: tuple[int | float, ...]
    curve: tuple[int | float, ...]
    layers: tuple[int, ...]
    model_args: dict[str, int] = field(default_factory=dict)
    engine_args: dict[str, object] = field(
        default_factory=lambda: {"max_model_len": 2048, "max_num_seqs": 16, "enforce_eager": True}
    )

    @property
    def task_folder(self) -> Path:
        """For lmms-eval's ``--include_path``, which its task needs."""
        return TINY / "tasks" / self.scenes


# Variables that vLLM needs to run on a few cores of a CPU, in one process.
SMALL_ENGINE = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}
LLAVA_TINY = Tiny(
    asset="llava-1.5-tiny",
    scenes="llava",
    checkpoint=ASSETS / "llava-1.5-tiny",
    object_layer=3,
    retentions=(48, 32, 16),
    curve=(72, 48, 32, 16, 8),
    layers=(1, 2, 3, 4, 5, 6, 7),
)
LLAVA_NEXT_TINY = replace(
    LLAVA_TINY,
    asset="llava-v1.6-tiny",
    scenes="llava_next",
    checkpoint=ASSETS / "llava-v1.6-tiny",
    retentions=(240, 160, 80),
    curve=(360, 240, 160, 80, 40),
)
QWEN_TINY = Tiny(
    asset="qwen2.5-vl-tiny",
    scenes="qwen2_5_vl",
    checkpoint=ASSETS / "qwen2.5-vl-tiny",
    object_layer=4,
    retentions=(0.334, 0.223, 0.112),
    curve=(0.5, 0.334, 0.223, 0.112, 0.056),
    layers=(1, 2, 3, 4, 5, 6, 7, 8),
    model_args={"min_pixels": 336 * 336},  # the scenes' own, which would be enlarged otherwise
)


@dataclass(frozen=True)
class Benchmark:
    """One bench_*.sh: the defaults of its variables.

    Attributes:
        family: as HiPruneConfig.from_env names it.
        model: lmms-eval's name of our model.
        dtype: on a GPU, of the released weights and of lmms-eval's stock model.
        model_args: for that model, all that decides an answer; said though they are its defaults,
            since they are part of what a run is.
        object_layer: l, of a checkpoint of another depth than the family's; None: the family's.
    """

    family: str
    model: str
    checkpoint: str
    tasks: tuple[str, ...]
    retentions: tuple[int | float, ...]
    tiny: Tiny
    retention_variable: str = "HIPRUNE_RETENTION"
    dtype: str = "float16"
    model_args: dict[str, object] = field(default_factory=dict)
    object_layer: int | None = None


LLAVA_ARGS = {"attn_implementation": "sdpa", "conv_template": "vicuna_v1"}
HF_ARGS = {"attn_implementation": "sdpa"}
QWEN_ARGS = {"attn_implementation": "sdpa", "min_pixels": 256 * 28 * 28, "max_pixels": 1605632}

BENCHMARKS = {
    "llava": Benchmark(
        family="llava",
        model="llava_hiprune",
        checkpoint="liuhaotian/llava-v1.5-7b",
        tasks=("gqa", "mme", "pope", "scienceqa_img", "vizwiz_vqa_val"),
        retentions=(192, 128, 64),
        # In the format of the `llava` package.
        tiny=replace(LLAVA_TINY, checkpoint=TINY / "llava-v1.5-tiny"),
        model_args=LLAVA_ARGS,
    ),
    "llava_next": Benchmark(
        family="llava_next",
        model="llava_hiprune",
        checkpoint="liuhaotian/llava-v1.6-vicuna-7b",
        tasks=("pope", "scienceqa_img", "vizwiz_vqa_val"),
        retentions=(640, 320, 160),
        tiny=replace(LLAVA_NEXT_TINY, checkpoint=TINY / "llava-v1.6-tiny"),
        model_args=LLAVA_ARGS,
    ),
    "llava_hf": Benchmark(
        family="llava",
        model="llava_hf_hiprune",
        checkpoint="llava-hf/llava-1.5-7b-hf",
        tasks=("gqa", "mme", "pope", "scienceqa_img", "vizwiz_vqa_val"),
        retentions=(192, 128, 64),
        tiny=LLAVA_TINY,
        # The original pads an image to a square; transformers' own crops it.
        model_args=HF_ARGS | {"pad": True},
    ),
    "llava_next_hf": Benchmark(
        family="llava_next",
        model="llava_hf_hiprune",
        checkpoint="llava-hf/llava-v1.6-vicuna-7b-hf",
        tasks=("pope", "scienceqa_img", "vizwiz_vqa_val"),
        retentions=(640, 320, 160),
        tiny=LLAVA_NEXT_TINY,
        model_args=HF_ARGS,
    ),
    "qwen2_5_vl": Benchmark(
        family="qwen2_5_vl",
        model="qwen2_5_vl_hiprune",
        checkpoint="Qwen/Qwen2.5-VL-3B-Instruct",
        tasks=("mmbench_en_dev", "mmbench_cn_dev", "pope", "scienceqa_img", "vizwiz_vqa_val"),
        retentions=(0.334, 0.223, 0.112),
        tiny=QWEN_TINY,
        retention_variable="HIPRUNE_QWEN_RETENTION",
        dtype="bfloat16",
        model_args=QWEN_ARGS,
    ),
}
