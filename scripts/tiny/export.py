"""A trained model as a checkpoint that transformers reads, and its card: what it answers right."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from shutil import copyfile

import torch
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from hiprune.machine import hardware, short_name, versions
from scripts.convert.to_hf import make_processor
from scripts.tiny.batches import HELD_OUT, Batch, Steps
from scripts.tiny.llava import LlavaTrainee
from scripts.tiny.loop import CURVE, measure
from scripts.tiny.questions import KINDS
from scripts.tiny.recipe import Recipe
from scripts.tiny.scenes import COLOURS, SHAPES, TEXTURES, THINGS
from scripts.tiny.tokens import QWEN_TEMPLATE
from scripts.tiny.trainee import Trainee

SCENES = 256
NAMES = {"llava": "LLaVA-1.5", "llava_next": "LLaVA-NeXT", "qwen2_5_vl": "Qwen2.5-VL"}


def export(trainee: Trainee, directory: Path) -> Path:
    """Write ``trainee``'s model to ``directory`` and return it; the dense heads stay behind.

    ``trainee``'s own weights are rounded to what is written.

    Weights in float16 (LLaVA) or bfloat16 (Qwen2.5-VL), as the released ones are. A LLaVA's
    tokenizer.model, which the `llava` package needs, lies with it.
    """
    tokenizer = trainee.prompts.tokenizer
    if isinstance(trainee, LlavaTrainee):
        processor = make_processor(trainee.settings, trainee.model.config.vision_config, tokenizer)
        dtype = torch.float16
    else:
        processor = qwen_processor(tokenizer)
        dtype = torch.bfloat16
    for weight in trainee.model.parameters():  # what is measured from here on is what is shipped
        weight.data = weight.data.to(dtype).to(weight.dtype)
    model = deepcopy(trainee.model).cpu().to(dtype)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = trainee.prompts.end_id
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    if trainee.prompts.pieces:
        copyfile(trainee.prompts.pieces, directory / "tokenizer.model")
    return directory


def qwen_processor(tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLProcessor:
    """The real image and video processors around ``tokenizer``."""
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=QWEN_TEMPLATE,
    )


def write_card(trainee: Trainee, recipe: Recipe, output: Path, command: str) -> Path:
    """Measure ``trainee`` on unseen scenes; write README.md and the curve to the checkpoint.

    Args:
        trainee: with the weights that were exported, as rounded there.
        output: folder of the run, with the curve and ``checkpoint/``.
        command: that made it.
    """
    folder = output / "checkpoint"
    copyfile(output / CURVE, folder / CURVE)
    lines = [json.loads(line) for line in (output / CURVE).read_text().splitlines()]
    scores, asked = _accuracy(trainee, recipe)
    text = _text(trainee, recipe, command, lines, scores, asked)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def _accuracy(trainee: Trainee, recipe: Recipe) -> tuple[dict[str, float], Counter[str]]:
    """Unpruned accuracy by kind, and questions of each, on scenes that nothing has seen so far."""
    shared = (trainee.prompts, trainee.drawing, trainee.grids)
    data = Steps(*shared, HELD_OUT + 1, 16, recipe.per_kind, SCENES // 16, plain=True)
    asked: Counter[str] = Counter()

    def batches() -> Iterator[Batch]:
        for index in range(len(data)):
            batch = data[index]
            asked.update(KINDS[kind] for kind in batch.kinds.flatten().tolist())
            yield batch

    return measure(trainee, batches(), recipe.bfloat16), asked


def _text(
    trainee: Trainee,
    recipe: Recipe,
    command: str,
    curve: list[dict],
    scores: dict[str, float],
    asked: Counter[str],
) -> str:
    name, tokens = NAMES[trainee.family], sum(columns**2 for columns in trainee.grids)
    millions = sum(p.numel() for p in trainee.model.parameters()) / 1e6
    settings = ", ".join(f"{k} {v}" for k, v in asdict(recipe).items() if k not in ("family",))
    rows = []
    for kind in KINDS:
        share, n = scores[kind], asked[kind]
        rows.append(f"| {kind} | {n} | {100 * share:.1f} | {_error(share, n)} |")
    device = trainee.shift.device
    used = ", ".join(f"{name} {number}" for name, number in versions().items() if name != "hiprune")
    last, side = curve[-1], trainee.drawing.side
    shown = recipe.tower_steps * recipe.batch
    tower = f", the first {shown:,} to the vision tower alone, without questions" * bool(shown)
    total = recipe.steps * recipe.batch
    start = "" if recipe.tower_steps else " The weights of the tiny LLaVA-1.5 are its first."
    sizes = " to ".join(f"{100 * size:.0f}" for size in trainee.drawing.sizes)
    return f"""---
license: mit
tags: [hiprune, tiny, generated-scenes]
---
# A tiny {name}, trained from scratch on generated scenes

{millions:.2f} M parameters, {tokens} visual tokens an image of {side} x {side}
pixels. It answers questions on drawn shapes with one word and knows nothing else: it is there so
that token pruning can be measured on any machine, without a GPU or a model hub. Pruning was not
trained for: the model never saw a prompt with tokens missing.

## Data
Scenes that follow from a seed (`scripts/tiny/scenes.py`): {THINGS[0]} to {THINGS[1]} things,
{len(SHAPES)} shapes, {len(COLOURS)} colours, {len(TEXTURES)} textures, {sizes} % of the side wide,
on grey clouds with lines and outlines. {total:,} scenes, each seen once{tower};
{5 * recipe.per_kind} questions each on {", ".join(KINDS)} (`scripts/tiny/questions.py`).

## Recipe
```
{command}
```
Answers' cross-entropy, and beside it linear heads on the tower's tokens (what lies under each,
dropped after training).{start} {settings[0].upper() + settings[1:]}.
{last["minutes"]:.0f} minutes of wall time on {short_name(hardware(device))}; {used}.
`curve.jsonl`: loss in training, and accuracy on 128 held-out scenes, over the steps.

## Unpruned accuracy
On {SCENES} unseen scenes, weights as shipped, computed as in training:

| questions on | how many | accuracy, % | standard error |
|---|---|---|---|
{chr(10).join(rows)}
| mean of the kinds | | {100 * scores["mean"]:.1f} | |
"""


def _error(share: float, n: int) -> str:
    return f"{100 * (share * (1 - share) / n) ** 0.5:.1f}"
