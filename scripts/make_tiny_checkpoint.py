"""Make a tiny checkpoint in the liuhaotian format: the real code path without the real weights.

The weights are random (fixed seed); what is real is everything that the code sees: file format,
tokenizer, image processor, 24 x 24 patches, 24 encoder layers, output layer -2, anyres views. Its
answers are "Yes" or "No" by chance, so that scores are those of guessing.

    python scripts/make_tiny_checkpoint.py --family llava --output .tiny/llava-v1.5-tiny
"""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path

import sentencepiece
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, LlamaTokenizer

ANSWERS = ("▁Yes", "▁No")
VOCABULARY = 512
CORPUS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.",
    "USER: Is there a red circle in the image? Answer the question using a single word or phrase.",
    "ASSISTANT: Yes ASSISTANT: No ASSISTANT: Yes ASSISTANT: No",
    "Is there a blue square, a green triangle, a cat, a cup of coffee, a rocket or a coin?",
    "How many objects are there? What colour is it? Where is the yellow star, left or right?",
)


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
    tower = _save_tower(directory / "vision_tower", image_size, layers, width)
    tokenizer = _save_tokenizer(directory)
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
        **_family_settings(family, image_size),
    )
    model = LlavaLlamaForCausalLM(config)
    _randomise(model.model.layers)
    _randomise(model.model.mm_projector)
    if family == "llava_next":
        model.model.vision_tower.vision_tower.load_state_dict(tower.state_dict())
        torch.nn.init.normal_(model.model.image_newline)
    model.model.mm_projector[-1].weight.data *= 3
    _answer_yes_or_no(model.eval(), tower, tokenizer.convert_tokens_to_ids(list(ANSWERS)))
    # In float16, as the released weights are.
    model.half().save_pretrained(directory, safe_serialization=False)
    return directory


def _family_settings(family: str, image_size: int) -> dict:
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
    raise SystemExit(f"family={family!r}: accepted is llava or llava_next")


def _save_tower(directory: Path, image_size: int, layers: int, width: int) -> CLIPVisionModel:
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
    _randomise(tower.vision_model.encoder.layers)
    torch.nn.init.normal_(tower.vision_model.embeddings.patch_embedding.weight, std=0.1)
    torch.nn.init.normal_(tower.vision_model.embeddings.position_embedding.weight, std=0.5)
    tower.save_pretrained(directory)
    CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    ).save_pretrained(directory)
    return tower


def _save_tokenizer(directory: Path) -> LlamaTokenizer:
    """A SentencePiece tokenizer with Llama's special tokens; bytes stand in for unseen text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        byte_fallback=True,
        user_defined_symbols=list(ANSWERS),
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path = directory / "tokenizer.model"
    path.write_bytes(model.getvalue())
    tokenizer = LlamaTokenizer(str(path), pad_token="<unk>", legacy=True, model_max_length=2048)
    tokenizer.save_pretrained(directory)
    return tokenizer


def _randomise(module: torch.nn.Module) -> None:
    """Weights of order 1 / sqrt(width), queries and keys larger: attention that has peaks."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            torch.nn.init.normal_(parameter, std=gain * parameter.shape[1] ** -0.5)


def _answer_yes_or_no(model: torch.nn.Module, tower: CLIPVisionModel, answers: list[int]) -> None:
    """Have the model say Yes or No, as its random layers make of the image, and then stop.

    The first hidden dimension is kept for "an answer was given": only the answers' embeddings set
    it, no layer writes to it, and the end token reads it.
    """
    embedding, head = model.model.embed_tokens.weight.data, model.lm_head.weight.data
    torch.nn.init.normal_(embedding, std=0.3)  # below the image's tokens, for these to matter
    embedding[:, 0] = 0
    embedding[answers, 0] = 50.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data[0] = 0
        layer.mlp.down_proj.weight.data[0] = 0
    model.model.mm_projector[-1].weight.data[0] = 0
    model.model.mm_projector[-1].bias.data[0] = 0

    direction = _direction_of_images(model, tower)
    head.zero_()
    head[answers[0]], head[answers[1]] = direction, -direction
    head[model.config.eos_token_id, 0] = 10.0


@torch.no_grad()
def _direction_of_images(model: torch.nn.Module, tower: CLIPVisionModel) -> torch.Tensor:
    """(C,) the direction in which the last hidden state differs most between random images.

    Without it one answer would win for nearly all images, and pruning would change none.
    """
    size = tower.config.image_size
    noise = torch.randn(16, 3, 6, 6)
    pixels = torch.nn.functional.interpolate(noise, (size, size), mode="bilinear")
    features = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]  # (B, N, C_v)
    text = model.model.embed_tokens(torch.arange(300, 330)).expand(len(pixels), -1, -1)
    prompt = torch.cat([model.model.mm_projector(features), text], dim=1)
    state = model.model(inputs_embeds=prompt).last_hidden_state[:, -1]  # (B, C)
    mean = state.mean(dim=0)
    principal = torch.linalg.svd(state - mean).Vh[0]
    direction = principal - (principal @ mean) / (mean @ mean) * mean
    direction[0] = 0
    return direction / direction.norm()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=["llava", "llava_next"], default="llava")
    parser.add_argument("--output", type=Path, required=True, help="folder; needs 'llava' in it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    directory = make_checkpoint(args.output, args.family, seed=args.seed)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(json.dumps({"checkpoint": str(directory), "MB": round(size / 1e6, 1)}))


if __name__ == "__main__":
    main()
