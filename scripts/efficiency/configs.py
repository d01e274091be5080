"""An architecture -> the configuration objects of transformers or of the `llava` package."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from scripts.efficiency.architectures import Architecture, Text, Vision


def clip_config(vision: Vision) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**_tower(vision), projection_dim=768)


def llama_config(text: Text, vocabulary: int | None = None) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(vocab_size=vocabulary or text.vocabulary, **_text(text))


def own_config(architecture: Architecture) -> Any:
    """Of transformers' own model of the family, transformers 5."""
    makers = {"internvl": internvl_config, "llava_onevision": llava_onevision_config}
    maker = qwen_config if architecture.is_qwen else makers.get(architecture.family)
    return (maker or llava_hf_config)(architecture)


def qwen_config(architecture: Architecture) -> Any:
    """Of transformers' Qwen2VL-, Qwen2_5_VL- or Qwen3VLForConditionalGeneration."""
    import transformers

    vision, text, family = architecture.vision, architecture.text, architecture.family
    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]}
    tower = {
        "depth": vision.layers,
        "hidden_size": vision.width,
        "num_heads": vision.heads,
        "intermediate_size": vision.mlp,
        "out_hidden_size": text.width,
        "patch_size": vision.patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if family == "qwen2_vl":
        del tower["intermediate_size"], tower["out_hidden_size"]
        tower |= {"embed_dim": vision.width, "hidden_size": text.width}
        tower["mlp_ratio"] = vision.mlp // vision.width
    elif family == "qwen3_vl":
        rope |= {"rope_theta": 5000000.0, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
        tower["deepstack_visual_indexes"] = list(vision.deepstack)
    else:
        tower |= {"window_size": 112, "fullatt_block_indexes": list(vision.full_attention)}
    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    shape = {"vocab_size": text.vocabulary, "rope_parameters": rope, **_text(text)}
    if text.head is not None:
        shape["head_dim"] = text.head
    return getattr(transformers, f"{names[family]}Config")(
        text_config=shape, vision_config=tower, tie_word_embeddings=text.tied
    )


def internvl_config(architecture: Architecture) -> Any:
    """Of transformers' InternVLForConditionalGeneration, with InternViT-300M's biases."""
    from transformers import InternVLConfig, InternVLVisionConfig

    vision, text = architecture.vision, architecture.text
    return InternVLConfig(
        vision_config=InternVLVisionConfig(**_tower(vision), attention_bias=True),
        text_config=_qwen2(text),
        image_seq_length=(vision.image_size // vision.patch) ** 2 // 4,
        tie_word_embeddings=text.tied,
    )


def llava_onevision_config(architecture: Architecture) -> Any:
    """Of transformers' LlavaOnevisionForConditionalGeneration."""
    from transformers import LlavaOnevisionConfig, SiglipVisionConfig

    vision, sides = architecture.vision, range(1, 7)
    side = vision.image_size
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_tower(vision), vision_use_head=False),
        text_config=_qwen2(architecture.text),
        image_grid_pinpoints=[[side * rows, side * columns] for rows in sides for columns in sides],
        tie_word_embeddings=architecture.text.tied,
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


def _tower(vision: Vision) -> dict[str, Any]:
    return {
        "hidden_size": vision.width,
        "intermediate_size": vision.mlp,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch,
    }


def _qwen2(text: Text) -> Any:
    from transformers import Qwen2Config

    rope = {"rope_type": "default", "rope_theta": 1000000.0}
    return Qwen2Config(vocab_size=text.vocabulary, rope_parameters=rope, **_text(text))


def _text(text: Text) -> dict[str, Any]:
    return {
        "hidden_size": text.width,
        "intermediate_size": text.mlp,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "max_position_embeddings": text.positions,
    }
