"""handle.encode_images: what is kept is what the unpatched model makes of these tokens."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

import hiprune
from hiprune import HiPruneConfig, HiPruneError

PACKAGE = find_spec("llava") is not None
transformers_only = pytest.mark.skipif(PACKAGE, reason="needs transformers 5.17 or newer")


def close(found, expected):
    # The rest of the output layer runs for kept tokens alone: other products, other roundings.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@transformers_only
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("retention", [7, 36])
def test_llava(attention, retention):
    from llava_hf_models import inputs, load

    model, arguments = load("llava", attention), inputs("llava", [2, 1])
    pixels = arguments["pixel_values"]
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=pixels).pooler_output
    with hiprune.prune(model, HiPruneConfig(retention, alpha=0.5, object_layer=3)) as pruned:
        found = pruned.encode_images(pixels)
    assert len(found) == len(pruned.selections) == 3
    for features, selection, whole in zip(found, pruned.selections, expected, strict=True):
        assert features.shape[0] == retention
        close(features, whole[selection.indices[0]])
    with pytest.raises(HiPruneError, match="encode_images: HiPrune was removed"):
        pruned.encode_images(pixels)


@transformers_only
def test_llava_next():
    from llava_hf_models import inputs, load

    model, arguments = load("llava_next", "sdpa"), inputs("llava_next", [1])
    pixels, sizes = arguments["pixel_values"], arguments["image_sizes"]  # 5 views
    with torch.no_grad():
        tower = model.model.vision_tower(pixels[0], output_hidden_states=True)
        views = model.model.multi_modal_projector(tower.hidden_states[-2][:, 1:])
    with hiprune.prune(model, HiPruneConfig(40, alpha=0.5, object_layer=3)) as pruned:
        (features,) = pruned.encode_images(pixels, sizes)
        with pytest.raises(HiPruneError, match="image_sizes=None"):
            pruned.encode_images(pixels)
    kept = pruned.selections[0].indices  # (5, 8)
    close(features[:8], views[0][kept[0]])  # the base view; the others come in the grid's order
    rest = torch.cat([view[row] for view, row in zip(views[1:], kept[1:], strict=True)])
    order = torch.cdist(features[8:], rest).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(32))
    close(features[8:], rest[order])


@transformers_only
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("full_attention", [[3, 7], [3], [], [7]])
@pytest.mark.parametrize("retention", [0.3, 1.0])
def test_qwen(attention, full_attention, retention, monkeypatch):
    """Also a last block with windows, which no released model has."""
    from qwen_models import inputs, load

    model, arguments = load(attention), inputs([2, 0, 1])
    visual = model.model.visual
    monkeypatch.setattr(visual, "fullatt_block_indexes", full_attention)
    pixels, grid = arguments["pixel_values"], arguments["image_grid_thw"]
    with torch.no_grad():
        expected = model.get_image_features(pixels, grid, return_dict=True).pooler_output
    with hiprune.prune(model, HiPruneConfig(retention, alpha=0.5, object_layer=4)) as pruned:
        found = pruned.encode_images(pixels, grid)
        with pytest.raises(HiPruneError, match="sizes=None; expected image_grid_thw"):
            pruned.encode_images(pixels)
        patches = torch.randn(8, visual.config.hidden_size)
        assert visual.merger(patches).shape == (2, 64)  # somebody's own call is left alone
    for features, selection, whole in zip(found, pruned.selections, expected, strict=True):
        assert len(features) == max(1, round(retention * len(whole)))
        close(features, whole[selection.indices[0]])


@transformers_only
def test_qwens_last_block_on_its_own_and_replaced(monkeypatch):
    from qwen_models import inputs, load

    model, arguments = load("sdpa"), inputs([1])
    pixels, grid = arguments["pixel_values"], arguments["image_grid_thw"]
    block = model.model.visual.blocks[-1]
    hidden = torch.randn(16, model.model.visual.config.hidden_size)
    head = block.attn.head_dim
    own = {
        "cu_seqlens": torch.tensor([0, 16]),
        "position_embeddings": (torch.ones(16, head), torch.zeros(16, head)),
    }
    with torch.no_grad():
        expected = block(hidden, **own)
        with hiprune.prune(model, HiPruneConfig(0.3, object_layer=4)) as pruned:
            assert torch.equal(block(hidden, **own), expected)  # somebody's own call
            with monkeypatch.context() as patch:
                patch.setattr(block, "forward", lambda hidden, **_: hidden)
                with pytest.raises(HiPruneError, match="layer 8: its attention ran 0 times"):
                    pruned.encode_images(pixels, grid)
            assert len(pruned.encode_images(pixels, grid)) == 1


@pytest.mark.skipif(not PACKAGE, reason="needs the `llava` package")
@pytest.mark.parametrize("retention", [7, 36])
def test_llava_package(tiny_llava, retention):
    from llava_models import inputs, load

    model, processor = load(tiny_llava)
    pixels = inputs(model, processor, [2])["images"]
    with torch.no_grad():
        expected = model.encode_images(pixels)
    with hiprune.prune(model, HiPruneConfig(retention, alpha=0.5, object_layer=3)) as pruned:
        found = pruned.encode_images(pixels)
    for features, selection, whole in zip(found, pruned.selections, expected, strict=True):
        assert features.shape[0] == retention
        close(features, whole[selection.indices[0]])


@pytest.mark.skipif(not PACKAGE, reason="needs the `llava` package")
def test_llava_package_views(tiny_llava_next, monkeypatch):
    from llava_models import inputs, load

    model, processor = load(tiny_llava_next)
    monkeypatch.setattr(model.config, "mm_patch_merge_type", "spatial")
    arguments = inputs(model, processor, [2])
    with hiprune.prune(model, HiPruneConfig(15, alpha=0.5, object_layer=3)) as pruned:
        found = pruned.encode_images(arguments["images"], arguments["image_sizes"])
        with torch.no_grad():
            model(**arguments)
    assert [len(features) for features in found] == [15, 15]
