"""An architecture -> the configuration objects of transformers or of the `llava` package."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from scripts.efficiency.architectures import Architecture, Text, Vision


def clip_config(vision: Vision) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=vision.width,
        intermediate_size=vision.mlp,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
        image_size=vision.image_size,
        patch_size=vision.patch,
        projection_dim=768,
    )


def llama_config(text: Text, vocabulary: int | None = None) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(vocab_size=vocabulary or text.vocabulary, **_text(text))


def qwen_config(architecture: Architecture) -> Any:
    """Of transformers' Qwen2_5_VLForConditionalGeneration."""
    from transformers import Qwen2_5_VLConfig

    vision, text = architecture.vision, architecture.text
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": text.vocabulary,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000000.0,
                "mrope_section": [16, 24, 24],
            },
            **_text(text),
        },
        vision_config={
            "depth": vision.layers,
            "hidden_size": vision.width,
            "num_heads": vision.heads,
            "intermediate_size": vision.mlp,
            "out_hidden_size": text.width,
            "patch_size": vision.patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": list(vision.full_attention),
        },
        tie_word_embeddings=text.tied,
    )


def llava_hf_config(architecture: Architecture) -> Any:
    """Of transformers' LlavaForConditionalGeneration or LlavaNextForConditionalGeneration."""
    from transformers import LlavaConfig, LlavaNextConfig

    vision, text = architecture.vision, architecture.text
    shared = {
        "vision_config": clip_config(vision),
        # Rows for the placeholder and for padding, filled up to a multiple of 64.
        "text_config": llama_config(text, text.vocabulary + 64),
        "image_token_index": text.vocabulary,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    if architecture.family == "llava_next":
        return LlavaNextConfig(**shared, image_grid_pinpoints=grids(vision))
    return LlavaConfig(**shared, image_seq_length=(vision.image_size // vision.patch) ** 2)


def llava_package_config(architecture: Architecture, vision_tower: str) -> Any:
    """Of the `llava` package's LlavaLlamaForCausalLM; ``vision_tower`` is a folder with CLIP."""
    from llava.model.language_model.llava_llama import LlavaConfig

    vision, text = architecture.vision, architecture.text
    following = architecture.family == "llava_next"
    return LlavaConfig(
        vocab_size=text.vocabulary,
        mm_vision_tower=vision_tower,
        mm_hidden_size=vision.width,
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_use_im_start_end=False,
        mm_use_im_patch_token=False,
        use_mm_proj=True,
        image_aspect_ratio="anyres" if following else "pad",
        mm_patch_merge_type="spatial_unpad" if following else "flat",
        image_grid_pinpoints=grids(vision),
        **_text(text),
    )


def grids(vision: Vision) -> list[list[int]]:
    """The resolutions of LLaVA-NeXT: (height, width) of the grids of views, in pixels."""
    side = vision.image_size
    return [[rows * side, columns * side] for rows, columns in _GRIDS]


def has_llava_package() -> bool:
    return find_spec("llava") is not None


_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


def _text(text: Text) -> dict[str, Any]:
    return {
        "hidden_size": text.width,
        "intermediate_size": text.mlp,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "max_position_embeddings": text.positions,
    }
