"""Engines of vLLM on the small trained models, and what transformers answers with hiprune.apply."""

from __future__ import annotations

import functools
import gc
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.benchmarks import ASSETS, SMALL_ENGINE

# Before vLLM is imported: all in this process, one thread, no look for cores.
os.environ |= SMALL_ENGINE | {"VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING")}

import numpy as np
import torch
import transformers
import vllm
import vllm_random
from PIL import Image
from vllm.platforms import current_platform

import hiprune
from scripts.tiny.questions import ask
from scripts.tiny.scenes import make_scene

# Once a process is enough: it goes through all modules, for a second or two of each engine's start.
_platform = type(current_platform)
_platform.register_triton_kernel_overrides = staticmethod(
    functools.cache(_platform.register_triton_kernel_overrides)
)

TRAINED = {
    "qwen2_5_vl": ASSETS / "qwen2.5-vl-tiny",
    "llava": ASSETS / "llava-1.5-tiny",
    "llava_next": ASSETS / "llava-v1.6-tiny",
}
CLASSES = {
    "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
    "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
    "qwen3_vl_moe": transformers.Qwen3VLMoeForConditionalGeneration,
    "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
    "llava": transformers.LlavaForConditionalGeneration,
    "llava_next": transformers.LlavaNextForConditionalGeneration,
}
# Height and width, as cut out of a drawn scene: of Qwen other grids, of LLaVA-NeXT other views.
SIZES = ((336, 336), (168, 168), (224, 168), (168, 336), (336, 196), (140, 308))
TOKENS = 6  # answers are one word; the ids after it are compared too


@dataclass(frozen=True)
class Request:
    """A conversation: the questions of each turn, its pictures in the first, answers between."""

    pictures: tuple[int, ...]
    turns: tuple[str, ...]

    def messages(self) -> list[dict]:
        first = [*({"type": "image"} for _ in self.pictures)]
        found = []
        for number, text in enumerate(self.turns):
            content = [*(first if number == 0 else []), {"type": "text", "text": text}]
            role = "assistant" if number % 2 else "user"
            found.append({"role": role, "content": text if number % 2 else content})
        return found


@functools.cache
def checkpoint(family: str) -> Path:
    """A trained model's folder; of the others one of random weights, gone with the process."""
    if family in TRAINED:
        return TRAINED[family]
    folder = tempfile.TemporaryDirectory()
    _FOLDERS.append(folder)
    return vllm_random.make_checkpoint(Path(folder.name), family)


_FOLDERS: list[tempfile.TemporaryDirectory] = []


@functools.cache
def picture(number: int) -> Image.Image:
    height, width = SIZES[number % len(SIZES)]
    scene = make_scene(7, number, 336)
    return Image.fromarray(scene.image).crop((0, 0, width, height))


def requests(count: int, first: int = 0) -> list[Request]:
    """With one picture, a few with several, one without any, and one of two turns of every ten."""
    found = []
    for number in range(first, first + count):
        rng = np.random.default_rng([3, number])
        asked = [q.text for q in ask(make_scene(7, number, 336), rng)]
        one, other = asked[4 * number % len(asked)], asked[(4 * number + 7) % len(asked)]
        kind = number % 10
        pictures = {3: (number, number + 1), 6: (number, number + 1, number + 2), 8: ()}
        turns = (one, "Yes", other) if kind == 5 else (one,)
        found.append(Request(pictures.get(kind, (number,)), turns))
    return found


@dataclass(frozen=True)
class Answer:
    """Greedy ids; N' of each picture."""

    ids: list[int]
    kept: list[int]


class Oracle:
    """transformers with hiprune.apply, one request after the other, greedy."""

    def __init__(self, family: str, dtype: torch.dtype = torch.float32) -> None:
        folder = checkpoint(family)
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.model = CLASSES[family].from_pretrained(folder, dtype=dtype).eval()

    def prompt(self, request: Request) -> str:
        return self.processor.apply_chat_template(
            request.messages(), tokenize=False, add_generation_prompt=True
        )

    @torch.no_grad()
    def answers(self, asked: list[Request], config: hiprune.HiPruneConfig | None) -> list[Answer]:
        """``config``: None leaves the model unpruned."""
        if config is None:
            return [self._answer(request, None) for request in asked]
        with hiprune.prune(self.model, config) as handle:
            return [self._answer(request, handle) for request in asked]

    def _answer(self, request: Request, handle: hiprune.PruneHandle | None) -> Answer:
        pictures = [picture(number) for number in request.pictures] or None
        text = self.prompt(request)
        inputs = self.processor(text=text, images=pictures, return_tensors="pt")
        output = self.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        kept = [s.indices.numel() for s in handle.selections] if pictures and handle else []
        return Answer(ids, kept)


@functools.cache
def oracle(family: str) -> Oracle:
    return Oracle(family)


@functools.cache
def expected(family: str, asked: tuple[Request, ...], config: tuple | None) -> list[Answer]:
    """Of the oracle; computed once, whoever compares with it. ``config``: pairs of settings; None:
    unpruned."""
    settings = None if config is None else hiprune.HiPruneConfig(**dict(config))
    return oracle(family).answers(list(asked), settings)


class Engine:
    """vLLM, in this process.

    Args:
        family: of the model.
        settings: HiPrune's, by --hf-overrides; None: none there.
        options: of vLLM's.
    """

    def __init__(self, family: str, settings: dict | None, **options) -> None:
        self.family = family
        if settings is not None:
            options["hf_overrides"] = {"hiprune": settings}
        options = {
            "dtype": "float32",
            "max_model_len": 2048,
            "max_num_seqs": 16,
            "limit_mm_per_prompt": {"image": 3},
            "enforce_eager": True,
            "disable_log_stats": True,
            "mm_processor_cache_gb": 0.1,
            "kv_cache_memory_bytes": 2
            ** 27,  # room enough; to fill 1 GiB takes a start half a second
        } | options
        self.llm = vllm.LLM(model=str(checkpoint(family)), **options)

    def answers(self, asked: list[Request]) -> list[Answer]:
        prompts = []
        for request in asked:
            prompt = {"prompt": oracle(self.family).prompt(request)}
            if request.pictures:
                pictures = [picture(number) for number in request.pictures]
                prompt["multi_modal_data"] = {"image": pictures}
            prompts.append(prompt)
        # Random weights go on to the full length, here as in transformers.
        on = self.family not in TRAINED
        sampling = vllm.SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=on)
        outputs = self.llm.generate(prompts, sampling, use_tqdm=False)
        token = placeholder(self.family)
        return [
            replace(Answer(list(o.outputs[0].token_ids), []), kept=runs(o.prompt_token_ids, token))
            for o in outputs
        ]

    @property
    def model(self):
        """The model itself, in its worker."""
        return self.llm.llm_engine.model_executor.driver_worker.worker.model_runner.model

    def forget(self) -> None:
        """Have the next answers come out of no cache."""
        assert self.llm.reset_prefix_cache()
        self.llm.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()


def engine(family: str, settings: dict | None, **options) -> Engine:
    """The engine of these very arguments: a start takes seconds, so tests in a row share one."""
    key = repr((family, settings, options))
    if key not in _ENGINE:
        close_shared()
        _ENGINE[key] = Engine(family, settings, **options)
    return _ENGINE[key]


_ENGINE: dict[str, Engine] = {}


def close_shared() -> None:
    for other in _ENGINE.values():
        other.close()
    _ENGINE.clear()


def placeholder(family: str) -> int:
    return oracle(family).model.config.image_token_id


def runs(ids: list[int], token: int) -> list[int]:
    """Lengths of the runs of a token."""
    found, before = [], None
    for each in ids:
        if each == token:
            if before != token:
                found.append(0)
            found[-1] += 1
        before = each
    return found


def equal(found: list[Answer], wanted: list[Answer]) -> int:
    return sum(one.ids == other.ids for one, other in zip(found, wanted, strict=True))


def main() -> None:
    """FAMILY COUNT RETENTION ...: how many answers are equal, twice each; beside the tests."""
    family, count, *budgets = sys.argv[1:]
    asked = requests(int(count))
    for retention in map(float, budgets):
        wanted = expected(family, tuple(asked), (("retention", retention),))
        for _ in range(2):
            found = engine(family, {"retention": retention}).answers(asked)
            kept = [sum(each.kept) for each in found] == [sum(each.kept) for each in wanted]
            print(f"{family} {retention}: {equal(found, wanted)} of {count} equal; N' {kept}")


if __name__ == "__main__":
    main()
