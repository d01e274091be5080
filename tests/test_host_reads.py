"""Between the vision tower's first layer and the language model's, nothing waits for the device."""

from __future__ import annotations

import pytest
import torch
from host_reads import HostReads

import hiprune

pytest.importorskip("transformers", minversion="5.17", reason="needs transformers 5.17 or newer")


def reads(model, tower_layers, text_layers, run) -> HostReads:
    with torch.no_grad(), HostReads(tower_layers[0], text_layers[0]) as found:
        run()
    assert found.spans == 1
    return found


CALLS = {
    "forward": lambda model, arguments: model(**arguments),
    "generate": lambda model, arguments: model.generate(
        **arguments, max_new_tokens=2, do_sample=False, eos_token_id=None
    ),
}


def test_a_read_is_seen():
    first, last = torch.nn.Identity(), torch.nn.Identity()
    x = torch.ones(3)

    def run():
        x.sum().item()  # before the span
        first(x)
        x.tolist(), bool(x[0]), x[x > 0], x.nonzero(), int(x[0]), x.index_put((x > 0,), x[0])
        x.masked_scatter(x > 0, x).cumsum(0).argsort()[:2]  # what a device does on its own
        last(x)
        x.tolist()

    assert reads(None, [first], [last], run).count >= 6


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("images", [[1], [1, 0, 2]])
@pytest.mark.parametrize("how", ["forward", "generate"])
def test_llava(family, images, how):
    import llava_hf_models as models

    model, arguments = models.load(family, "sdpa"), models.inputs(family, images)
    layers = model.model.vision_tower.encoder.layers, model.model.language_model.layers
    run = CALLS[how]
    unpatched = reads(model, *layers, lambda: run(model, arguments))
    with hiprune.prune(model, hiprune.HiPruneConfig(15, alpha=0.5, object_layer=3)):
        pruned = reads(model, *layers, lambda: run(model, arguments))
    assert pruned.ours == []
    assert pruned.count <= unpatched.count


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("images", [[1], [1, 0, 2]])
@pytest.mark.parametrize("how", ["forward", "generate"])
def test_qwen(family, images, how, monkeypatch):
    from hiprune.models import qwen_tower

    # torch's path of the scores reads the segments' lengths; the GPU's kernel, whose part this
    # stands in for, does not.
    monkeypatch.setattr(
        qwen_tower, "received_attention_packed", lambda q, k, *_: (q * k).sum(dim=(0, 2))
    )
    if family == "qwen2_5_vl":
        import qwen_models as models

        model, arguments = models.load("sdpa"), models.inputs(images)
    else:
        import qwen3_models as models

        model, arguments = models.load(family), models.inputs(family, images)
    layers = model.model.visual.blocks, model.model.language_model.layers
    run = CALLS[how]
    unpatched = reads(model, *layers, lambda: run(model, arguments))
    with hiprune.prune(
        model, hiprune.HiPruneConfig(0.3, alpha=0.5, object_layer=models.OBJECT_LAYER)
    ):
        pruned = reads(model, *layers, lambda: run(model, arguments))
    assert pruned.ours == []
    assert pruned.count <= unpatched.count
