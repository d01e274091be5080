"""The one matrix: every model family as one entry, for tests that hold for all of them.

A new family joins with one entry (see `Family` for what it has to say) in its environment's table.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from family import DTYPE, PACKAGE, Family, eager_towers, forward
from torch import Tensor


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


@torch.no_grad()
def _looked_of_clip(vision, layers, views, projector, made) -> tuple[int, int, dict[str, Tensor]]:
    """Of a tower that attends eagerly, from its maps and hidden states, and what k_proj gives."""
    keys, number = [], len(layers) - 1  # the output layer, counted from 1
    hook = layers[number - 1].self_attn.k_proj.register_forward_hook(
        lambda module, args, output: keys.append(output)
    )
    out = vision(views, output_hidden_states=True, output_attentions=True)
    hook.remove()
    maps, hidden = out.attentions, out.hidden_states[number]
    heads = maps[0].shape[1]
    return len(views), made.SIDE, {
        "object_scores": maps[made.OBJECT_LAYER - 1].mean(dim=(1, 2))[:, 1:],
        "output_scores": maps[number - 1].mean(dim=(1, 2))[:, 1:],
        "cls_attention": maps[number - 1][:, :, 0, 1:],
        "keys": keys[0].unflatten(-1, (heads, -1)).transpose(1, 2),
        "hidden": hidden,
        "features": hidden[:, 1:],
        "projected": projector(hidden[:, 1:]),
    }  # fmt: skip


def _llava_hf(name: str) -> Family:
    import llava_hf_models as made

    tokens = made.FAMILIES[name]
    views = name == "llava_next"

    def by_hand(model, arguments, retention, steps, pick=made.greedy):
        with eager_towers(model):
            features = made.features_by_hand(name, arguments, retention, model=model)
            prompt = made.prompt_by_hand(name, arguments, features, model=model)
        answer = made.decode_by_hand(model, prompt, steps, pick)
        return forward(model, prompt).logits[0], answer[0].tolist()

    def graded(model, arguments):
        model.set_attn_implementation({"vision_config": "eager"})
        features = made.features_by_hand.__wrapped__(name, arguments, tokens // 3, model=model)
        prompt = made.prompt_by_hand.__wrapped__(name, arguments, features, model=model)
        return model(**prompt).logits[0]

    def looked(model, arguments):
        eager = copy.deepcopy(model).model
        eager.vision_tower.set_attn_implementation("eager")
        found, sizes = [], arguments.get("image_sizes", [None] * 9)
        for image, size in zip(arguments["pixel_values"], sizes, strict=False):
            rows, columns = made.grid_of(size) if views else (0, 0)
            image = image[: 1 + rows * columns] if views else image[None]
            tower, projector = eager.vision_tower, eager.multi_modal_projector
            found.append(_looked_of_clip(tower, tower.encoder.layers, image, projector, made))
        return found

    def spatial(model, arguments):
        model = copy.deepcopy(model)
        model.model.pack_image_features = made.merge_spatially
        return model, made.spatial_prompt(arguments)

    return Family(
        name=name,
        make=functools.cache(lambda: made.load.__wrapped__(name, "sdpa")),  # that nobody has run
        prompts=lambda model, images, first: _as_models(made.inputs(name, list(images), first)),
        full=tokens,
        third=tokens // 3,
        most=tokens,
        object_layer=made.OBJECT_LAYER,
        by_hand=by_hand,
        cut=_cut("pixel_values", "image_sizes") if views else _cut("pixel_values"),
        pixels="pixel_values",
        placeholder=made.IMAGE,
        tower=lambda model: model.model.vision_tower,
        layers=lambda model: model.model.vision_tower.encoder.layers,
        projector=lambda model: model.model.multi_modal_projector,
        graded=graded,
        looked=looked,
        **({"plain": spatial, "newlines": True} if views else {}),
    )


def _cut_patches(arguments: dict, start: int, stop: int) -> dict:
    """Of Qwen's arguments, whose images' patches lie one after the other."""
    grids = arguments["image_grid_thw"]
    ends = [0, *grids.prod(dim=1).cumsum(0).tolist()]
    pixels = arguments["pixel_values"][ends[start] : ends[stop]]
    return {"pixel_values": pixels, "image_grid_thw": grids[start:stop]}


_QWEN_TOWER = {
    "full": 1.0,
    "third": 0.334,
    "most": None,
    "cut": _cut_patches,
    "pixels": "pixel_values",
    "tower": lambda model: model.model.visual,
    "layers": lambda model: model.model.visual.blocks,
    "projector": lambda model: model.model.visual.merger,
    "attention": "attn",
    "scored": ("qkv",),
    "output": -1,
    "mrope": True,
    "clip": False,
    "variable": "HIPRUNE_QWEN_RETENTION",
}


def _qwen2_5_vl() -> Family:
    import qwen_models as made

    def by_hand(model, arguments, retention, steps, pick=made.greedy):
        def budget(tokens):
            return max(1, round(retention * tokens))

        ((embeds, positions, after),) = made.pruned_rows_by_hand(model, arguments, budget)
        return made.continue_by_hand(model, embeds, positions, after, steps, pick)

    def graded(model, arguments):
        (prompt,) = made.pruned_rows_by_hand.__wrapped__(
            model, arguments, lambda tokens: max(1, round(0.334 * tokens))
        )
        return made.continue_by_hand.__wrapped__(model, *prompt, 1)[0]

    @torch.no_grad()
    def looked(model, arguments):
        found, start = [], 0
        for grid in arguments["image_grid_thw"].tolist():
            stop = start + grid[1] * grid[2]
            projected, maps = made.attention_maps(
                model, arguments["pixel_values"][start:stop], grid
            )
            scores = (made.scores_by_hand(maps[n], grid) for n in (made.OBJECT_LAYER, made.BLOCKS))
            needs = dict(zip(("object_scores", "output_scores"), scores, strict=True))
            found.append((1, grid[2] // made.MERGE, needs | {"projected": projected[None]}))
            start = stop
        return found

    return Family(
        name="qwen2_5_vl",
        make=functools.cache(lambda: made.load.__wrapped__("sdpa")),
        prompts=lambda model, images, first: _as_models(made.inputs(list(images), first)),
        object_layer=made.OBJECT_LAYER,
        rest=("proj", "gate_proj"),
        depth=(16, 32),
        graded=graded,
        looked=looked,
        by_hand=by_hand,
        placeholder=made.IMAGE,
        **_QWEN_TOWER,
    )


def _qwen(name: str) -> Family:
    """Qwen2-VL and Qwen3-VL, whose towers have no windows."""
    import qwen3_models as made

    def budget(retention):
        return lambda tokens: max(1, round(retention * tokens))

    def looked(model, arguments):
        grids = arguments["image_grid_thw"].tolist()
        found = []
        for part, grid in zip(
            arguments["pixel_values"].split([h * w for _, h, w in grids]), grids, strict=True
        ):
            (projected, *_), scores = made.look(model, part, grid)
            layers = {"object_scores": made.OBJECT_LAYER, "output_scores": made.BLOCKS}
            needs = {need: scores[number][None] for need, number in layers.items()}
            found.append(
                (1, grid[2] // made.MERGE, needs | {"projected": projected.detach()[None]})
            )
        return found

    return Family(
        name=name,
        make=functools.cache(lambda: made.load.__wrapped__(name)),
        prompts=lambda model, images, first: _as_models(made.inputs(name, list(images), first)),
        object_layer=made.OBJECT_LAYER,
        by_hand=lambda model, arguments, retention, *more, **settings: made.by_hand(
            model, arguments, budget(retention), *more, **settings
        ),
        graded=lambda model, arguments: made.by_hand.__wrapped__(
            model, arguments, budget(0.334), 1
        )[0],
        rest=("proj", "fc1", "linear_fc1"),
        looked=looked,
        placeholder=made.IMAGE,
        depth=(16, 32) if name == "qwen2_vl" else (14, 27),
        **_QWEN_TOWER,
    )


def _views(name: str) -> Family:
    """InternVL, LLaVA-OneVision, Video-LLaVA."""
    import views_by_hand as oracle
    import views_models as made
    from llava_hf_models import decode_by_hand, greedy

    towers = {"internvl": "encoder.layer", "llava_onevision": "encoder.layers"}
    tower = "vision_tower" if name in towers else "image_tower"
    full, third = (25, 8) if name == "video_llava" else (1.0, 0.334)
    depth = (10, 26) if name == "llava_onevision" else (9, 24)

    def prompt(model, arguments, retention):
        features = oracle.features_by_hand(name, model, arguments, retention)
        return oracle.prompt_by_hand(model, arguments, features)

    @torch.no_grad()
    def by_hand(model, arguments, retention, steps, pick=greedy):
        with eager_towers(model):
            pruned = prompt(model, arguments, retention)
        answer = decode_by_hand(model, pruned, steps, pick)
        return forward(model, pruned).logits[0], answer[0].tolist()

    def graded(model, arguments):
        return model(**prompt(oracle.eager(model), arguments, third)).logits[0]

    def spatial(model, arguments):
        model = copy.deepcopy(model)
        model.model.pack_image_features = made.merge_spatially
        return model, made.spatial_prompt(arguments)

    return Family(
        name=name,
        make=functools.cache(lambda: made.load.__wrapped__(name)),
        prompts=lambda model, images, first: _as_models(made.inputs(name, list(images), first)),
        full=full,
        third=third,
        most=made.MOST[name],
        object_layer=oracle.OBJECT_LAYER,
        by_hand=by_hand,
        cut=functools.partial(made.cut, name),
        pixels=made.pixels_name(name),
        placeholder=made.IMAGE,
        tower=lambda model: getattr(model.model, tower),
        layers=lambda model: getattr(model.model, tower).get_submodule(
            towers.get(name, "encoder.layers")
        ),
        projector=lambda model: model.model.multi_modal_projector,
        attention="attention" if name == "internvl" else "self_attn",
        rest=("v_proj", "projection_layer", "out_proj", "fc1"),
        graded=graded,
        output=-2 if name == "video_llava" else -1,
        depth=depth,
        clip=False,
        **({"plain": spatial, "newlines": True} if name == "llava_onevision" else {}),
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

    def looked(model, arguments):
        tower, images = model.get_vision_tower().vision_tower, arguments["images"]
        layers, projector = tower.vision_model.encoder.layers, model.model.mm_projector
        images = [views if views.ndim == 4 else views[None] for views in images]
        return [_looked_of_clip(tower, layers, views, projector, made) for views in images]

    return Family(
        name=name,
        make=make,
        prompts=prompts,
        full=tokens,
        third=tokens // 3,
        most=tokens,
        object_layer=made.OBJECT_LAYER,
        by_hand=by_hand,
        cut=_cut("images", "image_sizes"),
        pixels="images",
        placeholder=made.IMAGE_TOKEN_INDEX,
        tower=lambda model: model.get_vision_tower().vision_tower.vision_model,
        layers=lambda model: model.get_vision_tower().vision_tower.vision_model.encoder.layers,
        projector=lambda model: model.model.mm_projector,
        looked=looked,
        blanks=True,
    )


if PACKAGE:
    FAMILIES = {n: functools.partial(_llava_package, n) for n in ("llava", "llava_next")}
else:
    FAMILIES = {
        "llava": functools.partial(_llava_hf, "llava"),
        "llava_next": functools.partial(_llava_hf, "llava_next"),
        "qwen2_5_vl": _qwen2_5_vl,
        "qwen2_vl": functools.partial(_qwen, "qwen2_vl"),
        "qwen3_vl": functools.partial(_qwen, "qwen3_vl"),
        "internvl": functools.partial(_views, "internvl"),
        "llava_onevision": functools.partial(_views, "llava_onevision"),
        "video_llava": functools.partial(_views, "video_llava"),
    }
FAMILIES = {name: make() for name, make in FAMILIES.items()}
# Decorators: a test of all families of this environment, or of those of transformers.
over_families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
over_transformers = pytest.mark.parametrize(
    "family", [] if PACKAGE else FAMILIES.values(), ids=[] if PACKAGE else FAMILIES
)
