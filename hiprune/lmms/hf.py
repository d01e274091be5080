"""lmms-eval's model ``hiprune_hf``: any registered family of transformers, by its chat template.

No family is named here: the checkpoint's configuration tells the class, the processor's chat
template the prompt, the adapter which tokens of it are visual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from hiprune.errors import HiPruneError
from hiprune.images import open_image, pad_to_square
from hiprune.lmms.base import (
    DTYPES,
    PrunedLmms,
    chat_template_name,
    check_arguments,
    generation,
    unquoted,
)
from hiprune.lmms.checkpoint import describe, model_class
from hiprune.models.registry import adapter_of

ARGUMENTS = (
    "pretrained", "revision", "device", "device_map", "dtype", "batch_size", "attn_implementation",
    "use_cache", "chat_template", "system_prompt", "min_pixels", "max_pixels", "max_num_frames",
    "pad", "prune",
)  # fmt: skip
FRAMES = 32  # of a video


class HiPruneHf(PrunedLmms, lmms):
    """
    Args:
        pretrained, revision: the checkpoint, on the hub or a folder.
        dtype: bfloat16, float16 or float32.
        chat_template: in place of the processor's.
        system_prompt: in front of every conversation; None: what the template has.
        min_pixels, max_pixels: for the processor, where it takes them.
        max_num_frames: of a video, evenly spread, fewer where it has fewer; None: as many as the
            family's models were trained on, or 32 where that is no one number.
        pad: pad images to a square with the mean colour.
        prune: False leaves the model unpruned.
    """

    is_simple = False
    max_new_tokens = 1024  # where a task does not say
    families: tuple[str, ...] = ()  # whose checkpoints it asks in their own way; none: any

    def __init__(
        self,
        pretrained: str,
        revision: str = "main",
        device: str = "cuda",
        device_map: str = "auto",
        dtype: str = "bfloat16",
        batch_size: int | str = 1,
        attn_implementation: str | None = None,
        use_cache: bool = True,
        chat_template: str | None = None,
        system_prompt: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_num_frames: int | None = None,
        pad: bool = False,
        prune: bool = True,
        **unknown: Any,
    ) -> None:
        super().__init__()
        check_arguments(unknown, prune, dtype, f"some of {', '.join(ARGUMENTS)}")
        pretrained = unquoted(pretrained)
        self._check_family(pretrained, revision)
        self._place(device, device_map)
        self._load(pretrained, revision, dtype, attn_implementation)
        self._config = self._model.config
        self._adapter = adapter_of(self._model)
        pixels = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        pixels = {name: value for name, value in pixels.items() if value is not None}
        self.processor = AutoProcessor.from_pretrained(pretrained, revision=revision, **pixels)
        self.tokenizer = self.processor.tokenizer
        # Generation goes on at the right end of the prompts, so padding belongs on the left.
        self.tokenizer.padding_side = "left"
        self.pretrained, self.use_cache = pretrained, use_cache
        self.batch_size_per_gpu = self.batch_size = int(batch_size)
        self.chat_template = chat_template or self._template()
        self.system_prompt = system_prompt
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.max_num_frames = int(max_num_frames or self._adapter.video_frames or FRAMES)
        self.pad = self._pads(pad)
        said = chat_template_name(self.chat_template)
        self._start(
            prune,
            {
                "checkpoint": pretrained,
                "dtype": dtype,
                "prompt": said if system_prompt is None else f"{said}, {system_prompt!r}",
                "pad": self.pad,
                "max_num_frames": self.max_num_frames,
            },
        )

    def _check_family(self, pretrained: str, revision: str) -> None:
        """Before any weight is read: another family's prompt would be one that it never saw."""
        if not self.families:
            return
        family = describe(pretrained, revision).family.name
        if family not in self.families:
            raise HiPruneError(
                f"pretrained={pretrained!r}: a checkpoint of {family}; expected one of "
                f"{' or '.join(self.families)}, or the model hiprune_hf, which asks each family by "
                "its own chat template"
            )

    def _load(
        self, pretrained: str, revision: str, dtype: str, attn_implementation: str | None
    ) -> None:
        config = AutoConfig.from_pretrained(pretrained, revision=revision)
        loading = {"attn_implementation": attn_implementation} if attn_implementation else {}
        self._model = (
            model_class(config, pretrained)
            .from_pretrained(
                pretrained,
                revision=revision,
                dtype=DTYPES[dtype],
                device_map=self.device_map,
                **loading,
            )
            .eval()
        )

    @property
    def model(self) -> torch.nn.Module:
        return self._model

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def _language_model(self) -> torch.nn.Module:
        return self._model.model.language_model

    def loglikelihood(self, requests: list) -> list:
        raise HiPruneError("output_type='loglikelihood': expected a task of generate_until")

    def generate_until_multi_round(self, requests: list) -> list:
        raise HiPruneError("output_type: several rounds; expected a task of generate_until")

    # What another way to ask may change.

    def _template(self) -> str:
        """The processor's chat template, or the family's where the checkpoint has none."""
        template = self.processor.chat_template or self.tokenizer.chat_template
        template = template or self._adapter.chat_template
        if template is None:
            raise HiPruneError(
                f"pretrained={self.pretrained!r}: no chat template; expected one, or chat_template="
            )
        return template

    def _pads(self, pad: bool) -> bool:
        return pad

    def _ends(self) -> dict[str, Any]:
        """Ids for generate; what ends an answer is told by the checkpoint."""
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return {"pad_token_id": end if pad is None else pad}

    def _arguments(self, request: Any) -> tuple:
        if self.is_simple:
            return super()._arguments(request)
        context, to_messages, settings, *where = request.args  # the order for chat models
        return context, settings, to_messages, *where

    def _ask(self, context: str, to_prompt: Callable, doc: Any) -> tuple[Any, list]:
        """A conversation, with a place for each image and video; and these, in order."""
        if self.is_simple:
            return super()._ask(context, to_prompt, doc)
        conversation, visuals = [], []
        for message in ChatMessages(messages=to_prompt(doc)).messages:
            parts = []
            for part in message.content:
                if part.type == "text":
                    parts.append({"type": "text", "text": part.text})
                    continue
                if part.type not in ("image", "video"):
                    raise HiPruneError(f"content of type {part.type!r}: expected images, videos")
                parts.append({"type": part.type})
                visual = part.url
                if part.type == "image" and not isinstance(visual, Image.Image):
                    visual = open_image(visual)
                visuals.append(visual)
            conversation.append({"role": message.role, "content": parts})
        return conversation, visuals

    def _text(self, context: Any, visuals: list) -> str:
        """A prompt, rendered up to the answer, with a placeholder for each image and video."""
        system = [{"type": "text", "text": self.system_prompt}]
        system = [] if self.system_prompt is None else [{"role": "system", "content": system}]
        return self.processor.apply_chat_template(
            [*system, *context],
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=True,
        )

    def _image(self, image: Image.Image) -> Image.Image:
        image = image.convert("RGB")
        if not self.pad:
            return image
        return pad_to_square(image, self.processor.image_processor.image_mean)

    def _finished(self, answer: str, until: str | list[str]) -> str:
        """The answer up to the first of the task's stop strings, blank lines but."""
        for stop in [until] if isinstance(until, str) else until:
            if stop and stop != "\n\n":
                answer = answer.split(stop)[0]
        return answer

    # What follows from it.

    @torch.inference_mode()
    def _answer(
        self, contexts: Sequence[Any], visuals: Sequence[list], settings: dict, counted: bool
    ) -> list[str]:
        texts = [self._text(*asked) for asked in zip(contexts, visuals, strict=True)]
        inputs = self._inputs(texts, [one for row in visuals for one in row])
        ids = inputs["input_ids"]  # (B, T)
        tokens = (getattr(self._config, kind.token, None) for kind in self._adapter.kinds)
        visual = sum(int((ids == token).sum()) for token in tokens if token is not None)
        text_tokens = int(inputs["attention_mask"].sum()) - visual
        arguments = generation(settings, self.max_new_tokens)
        with self._counting(visuals, text_tokens, arguments["num_beams"], counted):
            output = self._model.generate(
                **inputs, **self._ends(), use_cache=self.use_cache, **arguments
            )
        answers = self.processor.batch_decode(
            output[:, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [self._finished(answer, settings.get("until", [])) for answer in answers]

    def _inputs(self, texts: list[str], visuals: list) -> Any:
        """What the model takes: ids (B, T), mask, pixels."""
        images = [self._image(one) for one in visuals if isinstance(one, Image.Image)]
        videos = [one for one in visuals if not isinstance(one, Image.Image)]
        media: dict[str, Any] = {"images": images} if images else {}
        if videos and (self.is_simple or not hasattr(self.processor, "video_processor")):
            raise HiPruneError(
                f"visual of type {type(videos[0]).__name__}: expected images (PIL); videos are for "
                "hiprune_hf, of a checkpoint that takes them"
            )
        if videos:
            frames, about = zip(*map(self._frames, videos), strict=True)
            media |= {"videos": list(frames), "video_metadata": list(about)}
            media["do_sample_frames"] = False
        inputs = self.processor(text=texts, padding=True, return_tensors="pt", **media)
        inputs = inputs.to(self._model.device)
        for kind in self._adapter.kinds:
            if kind.pixels in inputs:
                inputs[kind.pixels] = inputs[kind.pixels].to(self._model.dtype)
        return inputs

    def _frames(self, path: str) -> tuple[Any, Any]:
        """(frames, H, W, 3) of a video file, evenly spread, and what is known of it."""
        from transformers.video_utils import load_video

        def choose(metadata: Any, **_: Any) -> list[int]:
            total = metadata.total_num_frames
            number = min(self.max_num_frames, total)
            return [total * i // number for i in range(number)]

        return load_video(path, sample_indices_fn=choose)
