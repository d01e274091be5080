"""What the page shows, computed: a picture, a question and settings -> kept tokens and answers."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hiprune.models.pictures import Picture, picture
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from hiprune import HiPruneConfig, HiPruneError, TokenSelection, choose_tokens
from hiprune.figures.maps import received_attention_maps
from hiprune.images import open_image, pad_to_square
from scripts.demo.loaded import Loaded, Settings, visual_tokens

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_WORDS = 1000  # characters of a question
NEW_TOKENS = 64  # of an answer, at most
# Seconds: where the unpruned first token comes sooner, both are timed so often.
QUICK, TIMES = 0.5, 5


@dataclass(frozen=True)
class Seen:
    """A picture that the vision tower has seen.

    Attributes:
        image: as it was given.
        made: what the model sees of it.
        maps: (layers, V, N) attention that its tokens receive.
    """

    image: Image
    made: Picture
    maps: Tensor

    @property
    def views(self) -> int:
        return self.maps.shape[1]

    @property
    def tokens(self) -> int:
        """Of all views."""
        return self.maps.shape[1] * self.maps.shape[2]


@dataclass(frozen=True)
class Answer:
    """
    Attributes:
        text: without what the template has around it.
        seconds: from pixels and ids to the first token: tower, projector, prompt.
        times: how often that was measured; the median is told.
        visual: visual tokens in the prompt.
        prompt: tokens in the prompt, these included.
    """

    text: str
    seconds: float
    times: int
    visual: int
    prompt: int


@dataclass(frozen=True)
class Asked:
    """One question, asked twice: unpruned and pruned; and what was kept."""

    unpruned: Answer
    pruned: Answer
    selection: TokenSelection


def see(loaded: Loaded, path: str | Path) -> Seen:
    """A picture's file -> what all settings share.

    Raises:
        HiPruneError: no picture, or one that the model's processor refuses.
    """
    path = Path(path)
    try:
        image = open_image(path)
    except HiPruneError as error:  # users know the file by its name
        raise HiPruneError(str(error).replace(f"IMAGE {path}", path.name)) from error
    made = picture(loaded.model, loaded.processor.image_processor, image)
    with loaded.turn():
        pixels = made.views.to(loaded.model.device, loaded.model.dtype)
        inputs = {name: each.to(pixels.device) for name, each in made.tower_inputs.items()}
        maps = received_attention_maps(made.tower, pixels, **inputs)
    return Seen(image, made, made.token_maps(maps).cpu())


def choose(loaded: Loaded, seen: Seen, settings: Settings, question: str = "") -> TokenSelection:
    """The tokens of a picture that would be kept; nothing is asked.

    Of HiPrune itself this follows from the maps of a picture already seen, whoever has the model.

    Raises:
        HiPruneError: settings that the model or the picture cannot have; for a method that reads
            the question, none.
    """
    config = loaded.config(settings)
    if config.method == "hiprune" and not config.uses_cls:
        return _by_maps(seen, config)
    with loaded.turn():
        if "text_embeds" in config.needs:  # it needs the prompt
            inputs = _inputs(loaded, seen.image, question)
            with loaded.pruned(config) as handle:
                loaded.model.generate(**inputs, **_greedy(loaded, 1))
                return handle.selections[0]
        made, model = seen.made, loaded.model
        with loaded.pruned(config) as handle:
            handle.encode_images(made.pixels.to(model.device, model.dtype), made.sizes)
            return handle.selections[0]


def ask(loaded: Loaded, seen: Seen, question: str, settings: Settings) -> Asked:
    """Both answers to a question, greedy.

    Raises:
        HiPruneError: no question, or settings that the model cannot have.
    """
    config = loaded.config(settings)
    with loaded.turn():
        inputs = _inputs(loaded, seen.image, question)
        prompt = inputs["input_ids"].shape[1]
        text, first = _generated(loaded, inputs)
        times = TIMES if first < QUICK else 1  # of both
        seconds = _median(loaded, inputs, first, times)
        with loaded.pruned(config) as handle:
            visual = visual_tokens(loaded.model, inputs["input_ids"], handle)
            unpruned = Answer(text, seconds, times, visual, prompt)
            text, first = _generated(loaded, inputs)
            selection = handle.selections[0]  # of this answer: `random` draws anew
            seconds = _median(loaded, inputs, first, times)
    kept = tokens_kept(selection)
    pruned = Answer(text, seconds, times, kept, prompt - visual + kept)
    return Asked(unpruned, pruned, selection)


def tokens_kept(selection: TokenSelection) -> int:
    """Those that the language model gets of a picture, merged ones included."""
    merged = 0 if selection.merged is None else selection.merged.shape[:2].numel()
    return selection.indices.numel() + merged


def _by_maps(seen: Seen, config: HiPruneConfig) -> TokenSelection:
    layer, views = config.object_layer, seen.views
    if not 1 <= layer <= len(seen.maps):
        raise HiPruneError(f"object_layer={layer}: expected 1 to {len(seen.maps)}")
    if not views <= config.retention <= seen.tokens:
        raise HiPruneError(
            f"retention={config.retention}: expected {views} to {seen.tokens}, the tokens of this "
            "picture"
        )
    shared = ("alpha", "score", "buffer", "neighborhood", "registers")
    return choose_tokens(
        "hiprune",
        budget=config.retention // views,
        # Views are square; a picture without them may be of any shape.
        columns=seen.made.grids[0].columns if views == 1 else math.isqrt(seen.maps.shape[2]),
        object_scores=seen.maps[layer - 1],  # (V, N)
        output_scores=seen.maps[seen.made.output_layer - 1],
        **{name: getattr(config, name) for name in shared},
    )


def _inputs(loaded: Loaded, image: Image, question: str) -> Any:
    """What the model takes of one picture and one question."""
    processor, question = loaded.processor, question.strip()
    image_token = getattr(processor, "image_token", None)
    if not question:
        raise HiPruneError("question: empty; expected a question about the picture")
    if len(question) > MOST_WORDS:
        raise HiPruneError(f"question: {len(question)} characters; expected at most {MOST_WORDS}")
    if image_token and image_token in question:
        raise HiPruneError(f"question: {image_token!r} in it stands for a picture; expected words")
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    if loaded.family == "llava":  # as picture() does
        image = pad_to_square(image, processor.image_processor.image_mean)
    inputs = processor(text=[text], images=[image], return_tensors="pt").to(loaded.model.device)
    for name in ("pixel_values", "pixel_values_images"):
        if name in inputs:
            inputs[name] = inputs[name].to(loaded.model.dtype)
    return inputs


def _greedy(loaded: Loaded, new_tokens: int) -> dict[str, Any]:
    tokenizer = loaded.processor.tokenizer
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {**greedy, "num_beams": 1, "max_new_tokens": new_tokens, "pad_token_id": pad}


def _generated(loaded: Loaded, inputs: Any) -> tuple[str, float]:
    """The answer, and seconds to its first token."""
    clock = _FirstToken()
    output = loaded.model.generate(**inputs, **_greedy(loaded, NEW_TOKENS), streamer=clock)
    ids = output[:, inputs["input_ids"].shape[1] :]
    (text,) = loaded.processor.batch_decode(ids, skip_special_tokens=True)
    return text.strip(), clock.seconds


def _median(loaded: Loaded, inputs: Any, first: float, times: int) -> float:
    """Of the seconds to the first token, measured until there are so many."""
    found = [first]
    while len(found) < times:
        clock = _FirstToken()
        loaded.model.generate(**inputs, **_greedy(loaded, 1), streamer=clock)
        found.append(clock.seconds)
    return statistics.median(found)


class _FirstToken(BaseStreamer):
    """A clock that generate stops: it hands on the prompt, then token by token from the device."""

    def __init__(self) -> None:
        self.seconds, self._prompt = math.nan, True
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._start = time.perf_counter()

    def put(self, value: Tensor) -> None:
        if self._prompt:
            self._prompt = False
        elif math.isnan(self.seconds):
            self.seconds = time.perf_counter() - self._start

    def end(self) -> None:
        pass
