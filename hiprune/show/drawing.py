"""A picture's kept tokens as a figure, and what a model answers about the picture."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from hiprune.config import HiPruneConfig
from hiprune.errors import HiPruneError
from hiprune.figures.maps import received_attention_maps
from hiprune.images import pad_to_square
from hiprune.models.pictures import picture
from hiprune.models.registry import adapter_of
from hiprune.patching import prune

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def draw(
    model: Any,
    processor: Any,
    image: Image,
    config: HiPruneConfig,
    pad: bool = True,
    question: str | None = None,
) -> tuple[Figure, list[str]]:
    """The figure of an image, and what it shows in lines: the patch runs, and is taken off.

    Args:
        model: of transformers, unpatched.
        processor: the model's; without a question its image processor does.
        image: RGB.
        config: what is kept.
        pad: as of :func:`hiprune.models.pictures.picture`.
        question: asked twice, with all tokens and with the kept ones.
    """
    from hiprune.figures import counts, tokens_figure

    made = picture(model, getattr(processor, "image_processor", processor), image, pad=pad)
    made = replace(made, pixels=made.pixels.to(model.device, model.dtype))
    asked = (model, processor, image, question, pad)
    answers = [answer(*asked)] if question else []
    with prune(model, config) as pruned:
        pruned.encode_images(made.pixels, made.sizes)
        selection, config = pruned.selections[0], pruned.config
        answers += [answer(*asked)] if question else []
    maps = received_attention_maps(made.tower, made.views, **made.tower_inputs)
    maps = made.token_maps(maps)
    kept, total = int(selection.keep.sum()), selection.keep.numel()
    found = counts(selection)
    lines = [
        f"{kept} of {total} tokens kept: anchors by layer {config.object_layer}: "
        f"{found['anchor']}, their buffers: {found['buffer']}, registers by layer "
        f"{made.output_layer}: {found['register']}; dropped: {found['dropped']}; "
        f"alpha {config.alpha}"
    ]
    if question:
        lines += [f"question: {question}", f"all {total} tokens: {answers[0]}"]
        lines += [f"{kept} tokens: {answers[1]}"]
    title = f"HiPrune: retention {config.retention}, alpha {config.alpha}, object layer "
    figure = tokens_figure(
        image, maps, selection, made.grids, config.object_layer, made.output_layer,
        title + f"{config.object_layer}", question or "", tuple(answers) or None,
    )  # fmt: skip
    return figure, lines


@torch.inference_mode()
def answer(
    model: Any, processor: Any, image: Image, question: str, pad: bool = True, new_tokens: int = 64
) -> str:
    """Greedy, by the checkpoint's own chat template.

    Args:
        model: of transformers, pruned or not.
        processor: the model's.
        image: RGB.
        question: a user's turn, after the image.
        pad: of LLaVA-1.5: pad to a square, as :func:`hiprune.models.pictures.picture` does.
        new_tokens: the most of the answer.

    Raises:
        HiPruneError: a checkpoint without a chat template.
    """
    if pad and adapter_of(model).family(model) == "llava":
        image = pad_to_square(image, processor.image_processor.image_mean)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    turn = [{"role": "user", "content": content}]
    try:
        text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    except ValueError as error:
        said = " ".join(str(error).split())
        raise HiPruneError(f"--question: {said[:200]}; expected a chat template") from error
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    inputs = inputs.to(model.device, model.dtype)
    output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, num_beams=1)
    written = output[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(written, skip_special_tokens=True)[0].strip()
