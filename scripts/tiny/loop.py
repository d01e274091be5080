"""The training loop: losses, measuring, checkpoints, resuming."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from scripts.tiny.batches import HELD_OUT, IGNORED, Batch, Steps
from scripts.tiny.llava import LlavaNextTrainee, LlavaTrainee
from scripts.tiny.questions import KINDS
from scripts.tiny.qwen import QwenTrainee
from scripts.tiny.recipe import Optimiser, Recipe
from scripts.tiny.trainee import COLUMNS, Trainee

MAKERS = {maker.family: maker for maker in (LlavaTrainee, LlavaNextTrainee, QwenTrainee)}
FAMILIES = tuple(MAKERS)
STATE = "training.pt"
CURVE = "curve.jsonl"
END_WEIGHT = 0.05  # of the loss for stopping after the answer, which is learned at once
DENSE_WEIGHTS = {
    "shape": 1.0,
    "colour": 1.0,
    "centre": 1.0,
    "row": 0.1,
    "column": 0.1,
    "present": 1.0,
}


def make_trainee(family: str, directory: Path) -> Trainee:
    """A model with fresh weights; its tokenizer's file is written to ``directory``."""
    if family not in MAKERS:
        raise SystemExit(f"family={family!r}: expected one of {', '.join(FAMILIES)}")
    return MAKERS[family](directory)


def losses(trainee: Trainee, batch: Batch, answers: bool = True) -> dict[str, Tensor]:
    """Loss of each dense head and, unless ``answers`` is False, of answers and ends."""
    seen = trainee.vision(batch.images, bool(batch.newlines))
    found = {}
    for name, logits in trainee.dense(seen).items():
        if name == "present":
            found[name] = F.binary_cross_entropy_with_logits(logits.float(), batch.present)
            continue
        found[name] = F.cross_entropy(
            logits.float().flatten(0, 1), dense_target(batch, name).flatten(), ignore_index=IGNORED
        )
    if answers:
        answer, end = trainee.answer(seen.embedded, batch)
        found["answer"] = F.cross_entropy(answer.flatten(0, 1), batch.answers.flatten())
        stop = torch.full_like(batch.answers, trainee.prompts.end_id).flatten()
        found["end"] = F.cross_entropy(end.flatten(0, 1), stop)
    return found


def dense_target(batch: Batch, name: str) -> Tensor:
    """(B, N) classes for a head."""
    if name in ("row", "column"):
        line = torch.arange(COLUMNS, device=batch.images.device)
        line = line.repeat_interleave(COLUMNS) if name == "row" else line.repeat(COLUMNS)
        return line.expand(len(batch.images), -1)
    return getattr(batch, name)


def total(found: dict[str, Tensor], dense: float) -> Tensor:
    """The weighted sum that is minimised."""
    loss = sum(dense * DENSE_WEIGHTS[name] * found[name] for name in DENSE_WEIGHTS if name in found)
    if "answer" in found:
        loss = loss + found["answer"] + END_WEIGHT * found["end"]
    return loss


@torch.no_grad()
def measure(trainee: Trainee, batches: Iterable[Batch], bfloat16: bool) -> dict[str, float]:
    """Accuracy per question kind, their mean, and of the dense heads on tokens with a thing."""
    right, asked = torch.zeros(len(KINDS)), torch.zeros(len(KINDS))
    dense: dict[str, list[Tensor]] = {"shape": [], "colour": []}
    device = trainee.shift.device
    for batch in (batch.to(device) for batch in batches):
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            seen = trainee.vision(batch.images, bool(batch.newlines))
            answer, _ = trainee.answer(seen.embedded, batch)
            logits = trainee.dense(seen)
        kinds = batch.kinds.flatten().cpu()
        hits = (answer.argmax(-1) == batch.answers).flatten().float().cpu()
        right.index_add_(0, kinds, hits)
        asked.index_add_(0, kinds, torch.ones_like(hits))
        for name, values in dense.items():
            target = getattr(batch, name)
            values.append((logits[name].argmax(-1) == target)[target > 0].float())
    scores = dict(zip(KINDS, (right / asked).tolist(), strict=True))
    scores["mean"] = (right / asked).mean().item()
    for name, values in dense.items():
        scores[f"tower_{name}"] = torch.cat(values).mean().item()
    return {name: round(score, 4) for name, score in scores.items()}


def train(
    recipe: Recipe,
    output: Path,
    device: str = "cpu",
    resume: bool = False,
    start: Path | None = None,
    minutes: float | None = None,
    until: int | None = None,
    measure_every: int = 250,
    scenes: int = 128,
    workers: int = 0,
    compiled: bool = False,
) -> tuple[Trainee, bool]:
    """Train, and leave state and curve in ``output``; also returns whether all steps are done.

    Args:
        recipe: what to do.
        output: folder; made if missing.
        device: where the model runs.
        resume: go on from the state in ``output``; its recipe must be the same.
        start: folder of another run, whose weights are the first; LLaVA-NeXT begins with LLaVA's.
        minutes: stop at the first line of the curve after so many, of this and earlier runs.
        until: stop before this step.
        measure_every: steps between two lines of the curve (and two saved states).
        scenes: held-out scenes that are measured on.
        workers: processes that draw; 0: this one.
        compiled: compile the tower's pass; needs a C++ compiler.
    """
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    trainee = make_trainee(recipe.family, output).to(device)
    optimiser = Optimiser(trainee, recipe)
    first, spent = 0, 0.0
    if resume:
        first, spent = load(output / STATE, trainee, optimiser, recipe)
    else:
        (output / CURVE).write_text("")
        if start:
            weights = torch.load(start / STATE, map_location="cpu", weights_only=True)["trainee"]
            known = trainee.state_dict()
            trainee.load_state_dict({n: w for n, w in weights.items() if n in known}, strict=False)
    if compiled:
        trainee.vision = torch.compile(trainee.vision)
    shared = (trainee.prompts, trainee.drawing, trainee.grids)
    data = Steps(*shared, recipe.seed, recipe.batch, recipe.per_kind, recipe.steps)
    held_out = Steps(*shared, HELD_OUT, 16, recipe.per_kind, -(-scenes // 16), plain=True)
    tests = [held_out[index] for index in range(len(held_out))]
    last = min(until or recipe.steps, recipe.steps)
    loader = DataLoader(Subset(data, range(first, last)), batch_size=None, num_workers=workers)
    sums: dict[str, float] = {}
    clock, counted = time.perf_counter(), 0
    for step, batch in enumerate(loader, start=first):
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.bfloat16):
            found = losses(trainee, batch.to(device), answers=step >= recipe.tower_steps)
            loss = total(found, recipe.dense)
        if not torch.isfinite(loss):
            raise SystemExit(f"step {step}: the loss is {loss.item()}; try a lower --rate")
        loss.backward()
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        rate = optimiser.step(step)
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        counted += 1
        if (step + 1) % measure_every == 0 or step + 1 == last:
            now = time.perf_counter()
            spent += now - clock
            line = {
                "step": step + 1,
                "images": (step + 1) * recipe.batch,
                "minutes": round(spent / 60, 2),
                "images_per_s": round(counted * recipe.batch / (now - clock), 1),
                "rate": round(rate, 6),
                "loss": {name: round(value / counted, 4) for name, value in sums.items()},
                "accuracy": measure(trainee, tests, recipe.bfloat16),
            }
            with (output / CURVE).open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(progress(line, recipe.steps), flush=True)
            save(output / STATE, trainee, optimiser, recipe, step + 1, spent)
            sums, counted, clock = {}, 0, time.perf_counter()
            if minutes and spent > 60 * minutes:
                return trainee, step + 1 == recipe.steps
    return trainee, last == recipe.steps


def progress(line: dict, steps: int) -> str:
    """One line of the curve for people."""
    left = (steps - line["step"]) * line["minutes"] / line["step"]
    losses = " ".join(f"{name} {value:.3f}" for name, value in line["loss"].items())
    scores = " ".join(f"{name} {value:.3f}" for name, value in line["accuracy"].items())
    return (
        f"{line['step']}/{steps} {line['minutes']:.1f} min, about {left:.0f} left, "
        f"{line['images_per_s']} images/s | loss: {losses} | accuracy: {scores}"
    )


def save(
    path: Path, trainee: Trainee, optimiser: Optimiser, recipe: Recipe, step: int, spent: float
) -> None:
    """Write all that resuming needs, in one move."""
    state = {
        "recipe": asdict(recipe),
        "step": step,
        "spent": spent,
        "trainee": trainee.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def load(path: Path, trainee: Trainee, optimiser: Optimiser, recipe: Recipe) -> tuple[int, float]:
    """Read a state; return the step to go on with and the seconds spent so far."""
    if not path.is_file():
        raise SystemExit(f"{path}: no state to resume from")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise SystemExit(f"{path} was made by {state['recipe']}; asked for is {asdict(recipe)}")
    trainee.load_state_dict(state["trainee"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["spent"]
