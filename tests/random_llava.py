"""A tiny LLaVA checkpoint in the liuhaotian format; see random_checkpoint.py."""

from __future__ import annotations

from pathlib import Path

import torch
from random_tokenizer import ANSWERS, train_tokenizer
from random_weights import answer_yes_or_no, randomise
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, LlamaTokenizer


def make_checkpoint(
    directory: Path,
    family: str = "llava",
    image_size: int = 336,
    layers: int = 24,
    width: int = 64,
    seed: int = 0,
) -> Path:
    """Write a checkpoint that llava's ``load_pretrained_model`` reads, and return its folder.

    Args:
        directory: where; llava wants "llava" in its last part. Made if missing.
        family: "llava" (pad, merge type flat) or "llava_next" (anyres, spatial_unpad, with its own
            copy of the tower's weights, as the released LLaVA-NeXT checkpoints are).
        image_size: side of the tower's input in pixels, a multiple of 14.
        layers: L, encoder layers of the tower.
        width: hidden size of tower and language model.
        seed: of the weights.
    """
    # The registration of LLaVA's architectures is a side effect of this import.
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    directory = Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tower = make_tower(image_size, layers, width)
    tower.save_pretrained(directory / "vision_tower")
    CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    ).save_pretrained(directory / "vision_tower")
    train_tokenizer(directory)
    tokenizer = LlamaTokenizer(
        str(directory / "tokenizer.model"), pad_token="<unk>", legacy=True, model_max_length=2048
    )
    tokenizer.save_pretrained(directory)
    config = LlavaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=4096,
        mm_vision_tower=str(directory / "vision_tower"),  # llava takes it from the hub otherwise
        mm_hidden_size=width,
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_use_im_start_end=False,
        mm_use_im_patch_token=False,
        use_mm_proj=True,
        tokenizer_padding_side="right",
        **family_settings(family, image_size),
    )
    model = LlavaLlamaForCausalLM(config)
    randomise(model.model.layers)
    randomise(model.model.mm_projector)
    if family == "llava_next":
        model.model.vision_tower.vision_tower.load_state_dict(tower.state_dict())
        torch.nn.init.normal_(model.model.image_newline)
    model.eval()
    answer_yes_or_no(
        model.model.embed_tokens,
        model.model.layers,
        model.model.mm_projector[-1],
        model.lm_head,
        tokenizer.convert_tokens_to_ids(list(ANSWERS)),
        tokenizer.eos_token_id,
        lambda: _states(model, tower),
    )
    # In float16, as the released weights are.
    model.half().save_pretrained(directory, safe_serialization=False)
    return directory


def family_settings(family: str, image_size: int) -> dict:
    """What the released configurations of the two families differ in."""
    if family == "llava":
        return {
            "image_aspect_ratio": "pad",
            "mm_patch_merge_type": "flat",
            "tokenizer_model_max_length": 2048,
        }
    if family == "llava_next":
        grids = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]  # (width, height) in views
        return {
            "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": [[w * image_size, h * image_size] for w, h in grids],
            "tokenizer_model_max_length": 4096,
            "unfreeze_mm_vision_tower": True,
        }
    raise SystemExit(f"family={family!r}: expected llava or llava_next")


def make_tower(image_size: int, layers: int, width: int) -> CLIPVisionModel:
    """CLIP with random weights; its image processor is the real one."""
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=14,
        projection_dim=width,
    )
    tower = CLIPVisionModel(config).eval()
    vision = getattr(tower, "vision_model", tower)  # transformers 5 has one level less
    randomise(vision.encoder.layers)
    torch.nn.init.normal_(vision.embeddings.patch_embedding.weight, std=0.1)
    torch.nn.init.normal_(vision.embeddings.position_embedding.weight, std=0.5)
    return tower


@torch.no_grad()
def _states(model: torch.nn.Module, tower: CLIPVisionModel) -> torch.Tensor:
    """(16, C) the last hidden state of one prompt with 16 random images."""
    features = random_features(tower)
    text = model.model.embed_tokens(torch.arange(300, 330)).expand(len(features), -1, -1)
    prompt = torch.cat([model.model.mm_projector(features), text], dim=1)
    return model.model(inputs_embeds=prompt).last_hidden_state[:, -1]


def random_features(tower: CLIPVisionModel) -> torch.Tensor:
    """(16, N, C_v) features of smooth random images."""
    size = tower.config.image_size
    noise = torch.randn(16, 3, 6, 6)
    pixels = torch.nn.functional.interpolate(noise, (size, size), mode="bilinear")
    return tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
