"""Make tests/data/llava_golden.npz: what the `llava` package with HiPrune keeps and answers.

The package and transformers' own LLaVA do not run in one environment. This file carries the one's
results over to the other's tests: tiny checkpoints of both families, weights and all, pixels, the
kept tokens of each image and logits. Run where the `llava` package is installed:

    python tests/make_llava_golden.py --output tests/data/llava_golden.npz
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from random_checkpoint import make_checkpoint
from sentencepiece import sentencepiece_model_pb2

import hiprune

RETENTION = {"llava": 12, "llava_next": 60}
ALPHA, OBJECT_LAYER = 0.5, 3
POSITIONS = 4  # the last ones, whose logits are kept
# (width, height) of the images and their views under anyres
SIZES = [(160, 160), (168, 84), (400, 90)]
VIEWS = {"llava": [1, 1, 1], "llava_next": [5, 3, 4]}
PROMPTS = [[0], [1, 2]]  # the images of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("tests/data/llava_golden.npz"))
    args = parser.parse_args()
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in RETENTION:
            for name, value in golden(family, Path(folder) / f"llava-{family}").items():
                found[f"{family}/{name}"] = value
    args.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.output, **found)
    print(json.dumps({"file": str(args.output), "kB": args.output.stat().st_size // 1000}))


@torch.no_grad()
def golden(family: str, directory: Path) -> dict[str, np.ndarray]:
    """Files, weights, inputs and results of one family, by name."""
    make_checkpoint(directory, family, image_size=84, layers=6, width=16, seed=1)
    _, model, _, _ = load_pretrained_model(
        str(directory), None, directory.name, device_map="cpu", attn_implementation="eager"
    )
    model = model.float().eval()
    for weight in model.parameters():
        weight.data = weight.data.half().float()
    for module in model.modules():  # it was loaded in float16, and its rotary table made so
        if hasattr(module, "_set_cos_sin_cache"):
            module._set_cos_sin_cache(module.max_seq_len_cached, "cpu", torch.float32)
    settings = json.loads((directory / "config.json").read_text())
    settings["mm_vision_tower"] = "vision_tower"  # beside it, wherever that is
    weights = {name: weight.half() for name, weight in model.named_parameters()}
    files = {
        "config.json": json.dumps(settings).encode(),
        "vision_tower/config.json": (directory / "vision_tower/config.json").read_bytes(),
        "tokenizer.model": small_tokenizer(directory / "tokenizer.model"),
        "weights.json": json.dumps([[k, list(v.shape)] for k, v in weights.items()]).encode(),
    }
    found = {f"file/{k}": np.frombuffer(v, dtype=np.uint8) for k, v in files.items()}
    found["weights"] = torch.cat([weight.flatten() for weight in weights.values()]).numpy()

    noise = np.random.default_rng(0)
    config = hiprune.HiPruneConfig(RETENTION[family], ALPHA, OBJECT_LAYER)
    for number, images in enumerate(PROMPTS):
        ids = [1]
        for _ in images:
            ids += [*noise.integers(300, 500, 3).tolist(), IMAGE_TOKEN_INDEX]
        ids += noise.integers(300, 500, 5).tolist()
        coarse = [
            noise.standard_normal((VIEWS[family][image], 3, 12, 12)).astype(np.float16)
            for image in images
        ]
        views = [torch.from_numpy(enlarge(one)) for one in coarse]
        sizes = [SIZES[image] for image in images]
        with hiprune.prune(model, config) as pruned:
            out = model(
                input_ids=torch.tensor([ids]),
                images=torch.cat(views) if family == "llava" else views,
                image_sizes=sizes,
            )
        case = f"case/{number}"
        found[f"{case}/ids"] = np.array(ids)
        found[f"{case}/sizes"] = np.array(sizes)
        found[f"{case}/logits"] = out.logits[0, -POSITIONS:].numpy()
        for image, (one, selection) in enumerate(zip(coarse, pruned.selections, strict=True)):
            found[f"{case}/pixels/{image}"] = one
            found[f"{case}/kept/{image}"] = selection.indices.numpy().astype(np.uint8)
    found["setting/retention"] = np.array(RETENTION[family])
    found["setting/alpha"] = np.array(ALPHA)
    found["setting/object_layer"] = np.array(OBJECT_LAYER)
    return found


def small_tokenizer(path: Path) -> bytes:
    """Without the table of Unicode's normal forms, 240 kB that Llama's tokenizer has none of."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.precompiled_charsmap = b""
    return proto.SerializeToString()


def enlarge(coarse: np.ndarray) -> np.ndarray:
    """(V, 3, 12, 12) -> (V, 3, 84, 84) float32: a small file, and no library's resizing."""
    return coarse.repeat(7, axis=2).repeat(7, axis=3).astype(np.float32)


if __name__ == "__main__":
    main()
