"""One prompt with one image, as the model's generate takes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hiprune import HiPruneError
from hiprune.images import pad_to_square
from scripts.efficiency.architectures import Architecture
from scripts.efficiency.latency.subject import Subject

TEXT_TOKENS = 49  # the paper's FLOPs count a prompt of so many (Table 5)
PROMPT = "Describe this image in detail."
IMAGE_TOKEN_INDEX = -200  # llava.constants


@dataclass(frozen=True)
class Inputs:
    """Arguments of generate, and what they hold.

    Attributes:
        arguments: on the model's device, pixels in its dtype.
        text_tokens: of the prompt, without the image's.
    """

    arguments: dict[str, Any]
    text_tokens: int

    @property
    def pixels(self) -> Tensor:
        name = "images" if "images" in self.arguments else "pixel_values"
        return self.arguments[name]

    @property
    def sizes(self) -> Any:
        return self.arguments.get("image_sizes")

    def times(self, images: int) -> Inputs:
        """Of LLaVA's, the image so many times, for encoding; the prompt stays as it is."""
        found = dict(self.arguments)
        for name in ("pixel_values", "images", "image_sizes"):
            value = found.get(name)
            if isinstance(value, Tensor):
                found[name] = value.repeat(images, *[1] * (value.ndim - 1))
            elif value is not None:
                found[name] = value * images
        return replace(self, arguments=found)


def make_inputs(subject: Subject, image: Image.Image, prompt: str | None, seed: int) -> Inputs:
    """The image, pre-processed as the model's family does, and the prompt around it.

    Args:
        prompt: the question; None: :data:`PROMPT`. Random weights come without a tokenizer: their
            prompt is ``TEXT_TOKENS`` ids drawn from ``seed``, and None is expected.
    """
    if subject.reader is None and prompt is not None:
        raise HiPruneError(
            f"prompt={prompt!r} with random weights, which have no tokenizer; expected none (it "
            f"becomes {TEXT_TOKENS} random ids)"
        )
    text = _random_ids(subject, seed)
    prompt = prompt or PROMPT
    if subject.is_llava_package:
        return _llava_package(subject, image, prompt, text)
    if subject.reader is not None:
        return _processed(subject, image, prompt)
    arguments = _pixels(subject, image)
    count, token = _placeholders(subject, arguments), subject.model.config.image_token_id
    middle = len(text) // 2
    ids = torch.tensor([[*text[:middle], *[token] * count, *text[middle:]]])
    arguments |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if subject.request.architecture.is_qwen:
        arguments["mm_token_type_ids"] = (ids == token).int()
    return Inputs(_placed(subject, arguments), len(text))


def _random_ids(subject: Subject, seed: int) -> list[int]:
    # Below any placeholder's number.
    top = min(subject.request.architecture.text.vocabulary - 8, 30000)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, top, (TEXT_TOKENS,), generator=generator).tolist()


def _processed(subject: Subject, image: Image.Image, prompt: str) -> Inputs:
    """By the processor of a checkpoint in transformers' format."""
    processor = subject.reader
    if subject.family == "llava":  # transformers crops where the original pads
        image = pad_to_square(image, processor.image_processor.image_mean)
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    arguments = dict(processor(text=[text], images=[image], return_tensors="pt"))
    visual = int((arguments["input_ids"] == subject.model.config.image_token_id).sum())
    return Inputs(_placed(subject, arguments), arguments["input_ids"].shape[1] - visual)


def _pixels(subject: Subject, image: Image.Image) -> dict[str, Any]:
    """What the family's image processor gives, made here since there is no checkpoint."""
    import transformers

    architecture = subject.request.architecture
    if architecture.is_qwen:
        # Without limits on the size: the picture's own is asked for.
        processor = transformers.Qwen2VLImageProcessor(
            size={"shortest_edge": 4 * 28 * 28, "longest_edge": 1 << 26},
            patch_size=architecture.vision.patch,
        )
        return dict(processor(images=[image], return_tensors="pt"))
    processor = views_processor(architecture, subject.model.config)
    if subject.family == "llava":
        image = pad_to_square(image, processor.image_mean)
    found = dict(processor(images=[image], return_tensors="pt"))
    found.pop("num_patches", None)  # InternVL's processor takes it out, too
    return found


def views_processor(architecture: Architecture, config: Any) -> Any:
    """The image processor of a family whose images are views; ``config``: the model's."""
    import transformers

    side = architecture.vision.image_size
    square = {"height": side, "width": side}
    if architecture.family == "internvl":  # up to 12 tiles, and a thumbnail
        return transformers.GotOcr2ImageProcessor(
            size=square, crop_to_patches=True, min_patches=1, max_patches=12
        )
    cropped = {"size": {"shortest_edge": side}, "crop_size": square}
    if architecture.family == "llava":
        return transformers.CLIPImageProcessor(**cropped)
    grids = {"image_grid_pinpoints": config.image_grid_pinpoints}
    if architecture.family == "llava_onevision":
        return transformers.LlavaOnevisionImageProcessor(size=square, **grids)
    return transformers.LlavaNextImageProcessor(**cropped, **grids)


def _placeholders(subject: Subject, arguments: dict[str, Any]) -> int:
    """Tokens that the unpatched model makes of the image."""
    if subject.request.architecture.is_qwen:
        return int(arguments["image_grid_thw"].prod()) // 4  # a merged token is 2 x 2 patches
    vision = subject.request.architecture.vision
    tokens = (vision.image_size // vision.patch) ** 2
    if subject.family == "llava":
        return tokens
    if subject.family == "internvl":  # and here as well
        return len(arguments["pixel_values"]) * tokens // 4
    # Un-padded and with newlines: the model's own rule, on shapes alone.
    views = arguments["pixel_values"].shape[1]
    if subject.family == "llava_onevision":
        settings = {"vision_aspect_ratio": subject.model.config.vision_aspect_ratio}
    else:
        settings = {"vision_feature_select_strategy": "default"}
    packed, _ = subject.model.model.pack_image_features(
        [torch.empty(views, tokens, 1, device="meta")],
        arguments["image_sizes"],
        image_newline=torch.empty(1, device="meta"),
        **settings,
    )
    return len(packed[0])


def _llava_package(subject: Subject, image: Image.Image, prompt: str, text: list[int]) -> Inputs:
    from llava.conversation import conv_templates
    from llava.mm_utils import process_images, tokenizer_image_token

    model = subject.model
    pixels = process_images([image], model.get_vision_tower().image_processor, model.config)
    if subject.reader is None:
        middle = len(text) // 2
        ids = torch.tensor([*text[:middle], IMAGE_TOKEN_INDEX, *text[middle:]])
    else:
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message(conversation.roles[0], f"<image>\n{prompt}")
        conversation.append_message(conversation.roles[1], None)
        ids = tokenizer_image_token(
            conversation.get_prompt(), subject.reader, IMAGE_TOKEN_INDEX, return_tensors="pt"
        )
    arguments = {"inputs": ids.unsqueeze(0), "images": pixels, "image_sizes": [image.size]}
    return Inputs(_placed(subject, arguments), len(ids) - 1)


def _placed(subject: Subject, arguments: dict[str, Any]) -> dict[str, Any]:
    request = subject.request
    placed = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            dtype = request.dtype if value.is_floating_point() else value.dtype
            value = value.to(request.device, dtype)
        placed[name] = value
    return placed


def make_picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Smooth coloured blobs of (width, height) pixels; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(coarse.numpy()).resize(size, Image.Resampling.BICUBIC)
