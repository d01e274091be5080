"""The one matrix: every model family as one entry, for tests that hold for all of them.

An entry says how to make a tiny model and prompts for it, what a full and a small budget are, where
its tower's parts lie, and the oracles: what the unpatched model gives with everything kept, and a
prompt pruned by hand. A new family joins with one entry in its environment's table below.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hiprune import HiPruneConfig, HiPruneError

PACKAGE = find_spec("llava") is not None  # the `llava` package has an environment of its own
DTYPE = torch.float32 if PACKAGE else torch.float64  # transformers 4.37's masks know no float64
STEPS = 4
BY_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "labels")  # (B, T) each


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: as in a handle's ``family``, and where it comes from.
        make: a tiny model with random weights, the same every time.
        prompts: (model, images of each prompt, number of the first) -> left-padded arguments of
            forward and generate.
        full, third: budgets that keep everything, and a third.
        object_layer: l that the oracle is made with.
        by_hand: (model, arguments of one prompt without padding, budget, steps, pick) -> logits
            (T', V) and answer of the prompt pruned by hand; ``pick`` as of the decoders by hand.
        cut: (arguments, first, past the last) -> the arguments that bring these images.
        pixels: name of the argument with the pixels.
        placeholder: id of the token that stands for an image.
        tower, layers, projector: model -> the vision tower, its layers, what comes after it.
        attention: name of the attention in a layer.
        scored: names of the attention's layers that make queries and keys.
        plain: (model, arguments) -> those that keep everything without HiPrune; as they are, but
            for LLaVA-NeXT, whose kept tokens come without newlines (the paper's merge type).
        blanks: are prompts without an image among others given a blank one?
    """

    name: str
    make: Callable[[], Any]
    prompts: Callable[[Any, Sequence[int], int], dict]
    full: int | float
    third: int | float
    object_layer: int
    by_hand: Callable[..., tuple[Tensor, list[int]]]
    cut: Callable[[dict, int, int], dict]
    pixels: str
    placeholder: int
    tower: Callable[[Any], Any]
    layers: Callable[[Any], Any]
    projector: Callable[[Any], Any]
    attention: str = "self_attn"
    scored: tuple[str, ...] = ("q_proj", "k_proj")
    plain: Callable[[Any, dict], tuple[Any, dict]] = lambda model, arguments: (model, arguments)
    blanks: bool = False

    def model(self) -> Any:
        """A model of the test's own."""
        return copy.deepcopy(self.make()).to(DTYPE)

    def inputs(self, model: Any, images: Sequence[int], first: int = 0) -> dict:
        """Arguments for a left-padded batch of prompts with so many images each."""
        return self.prompts(model, images, first)

    def config(self, retention: int | float) -> HiPruneConfig:
        return HiPruneConfig(retention=retention, alpha=0.5, object_layer=self.object_layer)

    def alone(self, arguments: dict, images: Sequence[int]) -> list[dict]:
        """The prompts of a batch one by one, each with its images and without padding."""
        found, first = [], 0
        for number, count in enumerate(images):
            real = arguments["attention_mask"][number].bool()
            row = {n: arguments[n][number, real][None] for n in BY_TOKEN if n in arguments}
            found.append(row | (self.cut(arguments, first, first + count) if count else {}))
            first += max(count, 1) if self.blanks and any(images) else count
        return found

    def answer(self, model: Any, arguments: dict, **settings: Any) -> list[list[int]]:
        """What generate adds to each prompt, greedily unless told otherwise."""
        settings = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0} | settings
        # Without an end token random weights go on to the full length, for more to compare.
        settings.setdefault("eos_token_id", -1 if PACKAGE else None)
        arguments = dict(arguments)
        ids = arguments.pop("input_ids")
        found = model.generate(ids, **arguments, **settings)
        return getattr(found, "sequences", found)[:, -STEPS:].tolist()

    def answer_by_hand(self, model: Any, arguments: dict, images: Sequence[int], **more: Any):
        """The same of the prompts pruned to a third by hand, one by one."""
        rows = self.alone(arguments, images)
        return [self.by_hand(model, row, self.third, STEPS, **more)[1] for row in rows]


def forward(model: Any, arguments: dict, **more: Any) -> Any:
    with torch.no_grad():
        return model(**arguments, **more)


def placed(logits: Tensor, rows: Sequence[Tensor], pads_right: Sequence[int]) -> list[Tensor]:
    """Of (B, T', V) logits each row's own, (T'_r, V): its padding on the right stays as it was."""
    width = logits.shape[1]
    return [
        line[width - pad - len(row) : width - pad]
        for line, row, pad in zip(logits, rows, pads_right, strict=True)
    ]


def close_where_real(found: Tensor, expected: Tensor, plain: dict) -> None:
    """(B, T, V) logits but at padded positions, which are nobody's result."""
    assert found.shape == expected.shape
    real = plain["attention_mask"].bool()
    if real.shape == found.shape[:2]:  # not so where placeholders grow within the model
        found, expected = found[real], expected[real]
    close(found, expected, exact=True)


def close(found: Any, expected: Any, exact: bool = False) -> None:
    """Equal but for roundings; by hand maps are made in float32, hence the larger tolerance."""
    tolerance = (1e-5 if DTYPE == torch.float32 else 1e-9) if exact else 1e-4
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def right_or_refused(run: Callable[[], Any], right: Any, *names: str) -> bool:
    """``run`` gives what is right, or a HiPruneError that names one of the arguments.

    Args:
        right: what the result has to be, or a function that checks it.

    Returns:
        Whether it ran.
    """
    try:
        found = run()
    except HiPruneError as error:
        assert any(name in str(error) for name in names), f"names none of {names}: {error}"
        return False
    if callable(right):
        right(found)
    else:
        assert found == right
    return True


def state(model: Any) -> dict:
    """Every attribute of every module, by identity, and every hook."""
    found = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            hooks = tuple(value.items()) if name.endswith("_hooks") else None
            found[path, name] = (id(value), hooks)
    return found


def _as_models(arguments: dict) -> dict:
    """Pixels in the models' precision: the package's code converts what the tower gives to it."""

    def turn(value):
        if isinstance(value, list):
            return [turn(part) for part in value]
        return value.to(DTYPE) if isinstance(value, Tensor) and value.is_floating_point() else value

    return {name: turn(value) for name, value in arguments.items()}


def _cut(*names: str) -> Callable[[dict, int, int], dict]:
    """Of arguments with one entry an image."""
    return lambda arguments, start, stop: {n: arguments[n][start:stop] for n in names}


def _llava_hf(name: str) -> Family:
    import llava_hf_models as made

    tokens = made.FAMILIES[name]
    views = name == "llava_next"

    def by_hand(model, arguments, retention, steps, pick=made.greedy):
        eager = copy.deepcopy(model)  # whose maps can be looked at
        eager.set_attn_implementation({"vision_config": "eager"})
        features = made.features_by_hand(name, arguments, retention, model=eager)
        prompt = made.prompt_by_hand(name, arguments, features, model=eager)
        answer = made.decode_by_hand(model, prompt, steps, pick)
        return forward(model, prompt).logits[0], answer[0].tolist()

    def spatial(model, arguments):
        model = copy.deepcopy(model)
        model.model.pack_image_features = made.merge_spatially
        return model, made.spatial_prompt(arguments)

    return Family(
        name=name,
        make=lambda: made.load(name, "sdpa"),
        prompts=lambda model, images, first: _as_models(made.inputs(name, list(images), first)),
        full=tokens,
        third=tokens // 3,
        object_layer=made.OBJECT_LAYER,
        by_hand=by_hand,
        cut=_cut("pixel_values", "image_sizes") if views else _cut("pixel_values"),
        pixels="pixel_values",
        placeholder=made.IMAGE,
        tower=lambda model: model.model.vision_tower,
        layers=lambda model: model.model.vision_tower.encoder.layers,
        projector=lambda model: model.model.multi_modal_projector,
        **({"plain": spatial} if views else {}),
    )


def _qwen2_5_vl() -> Family:
    import qwen_models as made

    def by_hand(model, arguments, retention, steps, pick=made.greedy):
        def budget(tokens):
            return max(1, round(retention * tokens))

        ((embeds, positions, after),) = made.pruned_rows_by_hand(model, arguments, budget)
        return made.continue_by_hand(model, embeds, positions, after, steps, pick)

    def cut(arguments, start, stop):
        grids = arguments["image_grid_thw"]
        ends = [0, *grids.prod(dim=1).cumsum(0).tolist()]
        pixels = arguments["pixel_values"][ends[start] : ends[stop]]
        return {"pixel_values": pixels, "image_grid_thw": grids[start:stop]}

    return Family(
        name="qwen2_5_vl",
        make=lambda: made.load("sdpa"),
        prompts=lambda model, images, first: _as_models(made.inputs(list(images), first)),
        full=1.0,
        third=0.334,
        object_layer=made.OBJECT_LAYER,
        by_hand=by_hand,
        cut=cut,
        pixels="pixel_values",
        placeholder=made.IMAGE,
        tower=lambda model: model.model.visual,
        layers=lambda model: model.model.visual.blocks,
        projector=lambda model: model.model.visual.merger,
        attention="attn",
        scored=("qkv",),
    )


def _llava_package(name: str) -> Family:
    import llava_models as made
    from random_checkpoint import make_checkpoint
    from transformers import LlamaForCausalLM

    tokens = made.TOKENS * (5 if name == "llava_next" else 1)

    @functools.cache
    def make():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"llava-{name}"
            make_checkpoint(path, name, image_size=84, layers=made.LAYERS)
            model, _ = made.load.__wrapped__(path, "sdpa")
        # Its embeddings and head answer Yes or No, with large numbers: others have more to compare.
        torch.manual_seed(0)
        torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.3)
        torch.nn.init.normal_(model.lm_head.weight, std=0.1)
        for layer in model.model.layers:  # loaded in float16, which tells positions apart by halves
            rotary = layer.self_attn.rotary_emb
            rotary._set_cos_sin_cache(4096, rotary.inv_freq.device, torch.float32)
        # Newline tokens and un-padding are not used, as in the paper's code.
        model.config.mm_patch_merge_type = "spatial" if name == "llava_next" else "flat"
        return model

    def prompts(model, images, first):
        processor = model.get_vision_tower().image_processor
        return _as_models(made.inputs(model, processor, list(images), first))

    def by_hand(model, arguments, retention, steps):
        features = None
        if arguments.get("images") is not None:
            images, sizes = arguments["images"], arguments["image_sizes"]
            features = made.features_by_hand(model, images, sizes, retention)
        embeds, mask = made.embeddings_by_hand(model, {"images": None, **arguments}, features)
        made_by_hand = {"inputs_embeds": embeds, "attention_mask": mask}
        with torch.no_grad():
            logits = LlamaForCausalLM.forward(model, **made_by_hand).logits[0]
        answer = LlamaForCausalLM.generate(
            model, **made_by_hand, pad_token_id=0, eos_token_id=-1, max_new_tokens=steps,
            do_sample=False,
        )  # fmt: skip
        return logits, answer[0, -steps:].tolist()

    return Family(
        name=name,
        make=make,
        prompts=prompts,
        full=tokens,
        third=tokens // 3,
        object_layer=made.OBJECT_LAYER,
        by_hand=by_hand,
        cut=_cut("images", "image_sizes"),
        pixels="images",
        placeholder=made.IMAGE_TOKEN_INDEX,
        tower=lambda model: model.get_vision_tower().vision_tower.vision_model,
        layers=lambda model: model.get_vision_tower().vision_tower.vision_model.encoder.layers,
        projector=lambda model: model.model.mm_projector,
        blanks=True,
    )


if PACKAGE:
    FAMILIES = {n: functools.partial(_llava_package, n) for n in ("llava", "llava_next")}
else:
    FAMILIES = {
        "llava": functools.partial(_llava_hf, "llava"),
        "llava_next": functools.partial(_llava_hf, "llava_next"),
        "qwen2_5_vl": _qwen2_5_vl,
    }
FAMILIES = {name: make() for name, make in FAMILIES.items()}
# Decorators: a test of all families of this environment, or of those of transformers.
over_families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
over_transformers = pytest.mark.parametrize(
    "family", [] if PACKAGE else FAMILIES.values(), ids=[] if PACKAGE else FAMILIES
)
