"""A model to measure: of a checkpoint, or built from its architecture with random weights."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hiprune import HiPruneError
from scripts.efficiency.architectures import Architecture
from scripts.efficiency.configs import clip_config, llava_package_config, own_config
from scripts.efficiency.latency.rounds import is_out_of_memory
from scripts.efficiency.latency.subject import Request, Subject, language_model

CLASSES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
}


def build(request: Request) -> Subject:
    """The model, in eval mode, and its reader.

    Raises:
        HiPruneError: a checkpoint that cannot be read, or an attention that is not installed.
    """
    makers: dict[tuple[str, bool], Callable[[Request], Subject]] = {
        ("transformers", True): _random_transformers,
        ("transformers", False): _load_transformers,
        ("llava", True): _random_llava,
        ("llava", False): _load_llava,
    }
    try:
        subject = makers[request.package, request.checkpoint is None](request)
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, HiPruneError) or is_out_of_memory(error):
            raise
        raise HiPruneError(
            f"checkpoint={request.checkpoint or 'random weights'!r} with "
            f"attention={request.attention!r}: {str(error).strip()}\nexpected a folder or a hub "
            "id that is reachable (--random-weights needs none), and an attention that is "
            "installed (eager always is)"
        ) from error
    model = subject.model.eval().requires_grad_(False)
    # Exactly as many new tokens as asked for, whatever the weights answer.
    model.generation_config = _greedy()
    if request.one_layer:
        language = language_model(subject)
        language.layers = language.layers[:1]
    return subject


def _greedy() -> Any:
    from transformers import GenerationConfig

    # transformers 4 wants a first token even where embeddings are given.
    return GenerationConfig(
        do_sample=False, bos_token_id=1, eos_token_id=None, pad_token_id=0, use_cache=True
    )


def _shortened(request: Request) -> Architecture:
    """One layer and few words, where the language model does not run."""
    architecture = request.architecture
    if not request.one_layer:
        return architecture
    return replace(architecture, text=replace(architecture.text, layers=1, vocabulary=512))


def _random_transformers(request: Request) -> Subject:
    import transformers

    architecture = _shortened(request)
    config = own_config(architecture)
    if architecture.needs_own:
        _number_placeholders(config, architecture.text.vocabulary)
    cls = getattr(transformers, CLASSES[architecture.family])
    with torch.device(request.device), without_initialisation():
        model = cls._from_config(config, dtype=request.dtype, attn_implementation=request.attention)
    model.tie_weights()
    draw_weights(model, request.seed)
    return Subject(request, model)


def _number_placeholders(config: Any, vocabulary: int) -> None:
    """A small vocabulary ends before the families' own numbers of the visual tokens."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    names = [name for name in names if hasattr(config, name)]
    if vocabulary <= max(getattr(config, name) for name in names):
        for number, name in enumerate(names, 1):
            setattr(config, name, vocabulary - number)


def _load_transformers(request: Request) -> Subject:
    import transformers

    cls = getattr(transformers, CLASSES[request.architecture.family])
    model = cls.from_pretrained(
        request.checkpoint,
        dtype=request.dtype,
        device_map=str(request.device),
        attn_implementation=request.attention,
    )
    return Subject(request, model, transformers.AutoProcessor.from_pretrained(request.checkpoint))


def _random_llava(request: Request) -> Subject:
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
    from transformers import CLIPImageProcessor, CLIPVisionModel

    architecture = _shortened(request)
    vision = clip_config(architecture.vision)
    side = vision.image_size
    with tempfile.TemporaryDirectory() as folder:  # the package reads the tower's size from a file
        vision.save_pretrained(folder)
        config = llava_package_config(architecture, folder)
        config._attn_implementation = request.attention
        with _built_on(request), without_initialisation():
            model = LlavaLlamaForCausalLM(config)
            clip = CLIPVisionModel(vision)
    tower = model.get_vision_tower()
    tower.vision_tower = clip.requires_grad_(False)
    tower.image_processor = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    tower.is_loaded = True
    draw_weights(model, request.seed)
    return Subject(request, model)


def _load_llava(request: Request) -> Subject:
    from llava.mm_utils import get_model_name_from_path
    from llava.model.builder import load_pretrained_model

    name = get_model_name_from_path(request.checkpoint)
    if "llava" not in name.lower():
        raise HiPruneError(
            f"checkpoint={request.checkpoint!r}: the `llava` package expects a name with "
            "'llava' in its last part"
        )
    with warnings.catch_warnings():
        # transformers 4.37 says it of each weight of a tower that the package loads afterwards.
        warnings.filterwarnings("ignore", "for .* copying from a non-meta parameter")
        tokenizer, model, _, _ = load_pretrained_model(
            request.checkpoint,
            None,
            name,
            device_map=str(request.device),
            attn_implementation=request.attention,
        )
    return Subject(request, model.to(request.dtype), tokenizer)


@contextmanager
def _built_on(request: Request):
    """New tensors on the request's device and in its dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.dtype)
    try:
        with torch.device(request.device):
            yield
    finally:
        torch.set_default_dtype(before)


def without_initialisation() -> AbstractContextManager:
    """transformers' own switch: the slow draws of construction, which are overwritten, are left."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # before transformers 5
        from transformers.modeling_utils import no_init_weights
    return no_init_weights()


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Fill every parameter in place, on its device and in its dtype.

    Matrices have a standard deviation of 1 / sqrt(inputs), which keeps activations of the order of
    one and so finite in half precision through any depth; biases are 0, norms are 1.
    """
    generators: dict[torch.device, torch.Generator] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            device = parameter.device
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(seed)
            if parameter.ndim >= 2:
                std = parameter[0].numel() ** -0.5
                parameter.normal_(std=std, generator=generators[device])
            elif name == "bias":
                parameter.zero_()
            elif name == "weight":
                parameter.fill_(1.0)
            else:  # a class token, a newline
                std = parameter.numel() ** -0.5
                parameter.normal_(std=std, generator=generators[device])
