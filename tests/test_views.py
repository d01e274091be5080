"""InternVL, LLaVA-OneVision and Video-LLaVA, beside the matrix: videos, tiles, budgets, layouts."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="needs the environment .venv-qwen")

import views_by_hand as oracle
import views_models as made
from family import close, forward
from hiprune.models.tokens import Tokens
from llava_hf_models import decode_by_hand

import hiprune
from hiprune import HiPruneConfig, HiPruneError

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = ("internvl", "llava_onevision", "video_llava")
over_all = pytest.mark.parametrize("family", FAMILIES)
STEPS = 3


def config(retention, **more):
    return HiPruneConfig(retention, alpha=oracle.ALPHA, object_layer=oracle.OBJECT_LAYER, **more)


def generate(model, arguments, **settings):
    return model.generate(
        **arguments,
        **{"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None, **settings},
    )


def plain(family, model, arguments):
    """Those that keep everything without HiPrune."""
    if family != "llava_onevision":
        return model, arguments
    model = copy.copy(model)
    model.__dict__ |= {"_modules": dict(model._modules)}
    model._modules["model"] = inner = copy.copy(model.model)
    inner.pack_image_features = made.merge_spatially
    return model, made.spatial_prompt(arguments)


@torch.no_grad()
def check(family, model, arguments, retention, logits, ids):
    """Logits and answers of the pruned prompts are those made by hand."""
    features = oracle.features_by_hand(family, made.load(family, "eager"), arguments, retention)
    prompt = oracle.prompt_by_hand(model, arguments, features)
    expected = forward(model, prompt).logits
    real = prompt["attention_mask"].bool()
    assert logits.shape == expected.shape
    close(logits[real], expected[real])
    width = arguments["input_ids"].shape[1]
    assert torch.equal(ids[:, :width], arguments["input_ids"]), "the prompt comes back whole"
    assert torch.equal(ids[:, width:], decode_by_hand(model, prompt, STEPS))


@over_all
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("images", "frames"), [([1, 0], 1), ([0, 2], 3), ([0], 8)])
def test_images_and_videos(family, attention, images, frames):
    """Frames are pruned one by one, each to the budget; what stands between them stays."""
    model, arguments = made.load(family, attention), made.inputs(family, images, 0, frames)
    whole, asked = plain(family, model, arguments)
    expected, expected_ids = forward(whole, asked).logits, generate(whole, asked)
    real = asked["attention_mask"].bool()
    with hiprune.prune(model, config(1.0)):
        found = forward(model, arguments).logits
        close(found[..., -1, :], expected[..., -1, :])
        if found.shape == expected.shape:
            close(found[real], expected[real])
        assert torch.equal(generate(model, arguments)[:, -STEPS:], expected_ids[:, -STEPS:])
    for retention in (0.334, 5):
        with hiprune.prune(model, config(retention)) as pruned:
            logits, ids = forward(model, arguments).logits, generate(model, arguments)
        check(family, model, arguments, retention, logits, ids)
        kept = {selection.indices.shape[1] for selection in pruned.selections}
        tokens = 9 if family != "video_llava" else 25
        assert (5 if retention == 5 else round(0.334 * tokens)) in kept, "a frame's own budget"


@over_all
def test_an_image_and_a_frame_keep_their_tokens_whatever_is_beside_them(family):
    model, arguments = made.load(family), made.inputs(family, [3], video_frames=2)
    with hiprune.prune(model, config(7)) as pruned:
        forward(model, arguments)
        together = pruned.selections
        for number, views in enumerate(made.images_of(family, arguments)):
            ids = arguments["input_ids"][:, -4:]
            alone = {
                "input_ids": torch.cat([torch.full((1, length(family, views)), made.IMAGE), ids], 1)
            }
            alone[made.pixels_name(family)] = views
            if family == "llava_onevision":  # as one of two
                alone["input_ids"] = torch.cat([alone["input_ids"]] * 2, dim=1)
                alone |= {
                    "pixel_values": torch.stack([views, views]),
                    "image_sizes": arguments["image_sizes"][[number] * 2],
                    "batch_num_images": torch.tensor([2]),
                }
            forward(model, alone)
            assert torch.equal(pruned.selections[0].indices, together[number].indices)
        if family == "internvl":
            return
        for frame in range(2):
            video = arguments["pixel_values_videos"][:, frame : frame + 1]
            count = 26 if family == "video_llava" else 10
            ids = torch.tensor([[1, *[made.VIDEO] * count, 5]])
            forward(model, {"input_ids": ids, "pixel_values_videos": video})
            assert torch.equal(pruned.selections[0].indices[0], together[-1].indices[frame])


def length(family, views):
    return made.TOKENS[family] * len(views) + (family == "llava_onevision")


@over_all
@pytest.mark.parametrize("retention", [1.0, 0.334])
def test_beams_and_sampling(family, retention):
    """As from embeddings by hand: transformers 5.17 itself mixes up images where it copies rows."""
    model, arguments = made.load(family), made.inputs(family, [1, 2], video_frames=1)
    with torch.no_grad():
        eager = made.load(family, "eager")
        features = oracle.features_by_hand(family, eager, arguments, retention)
        prompt = oracle.prompt_by_hand(model, arguments, features)
    del prompt["position_ids"]
    for settings in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        torch.manual_seed(0)
        expected = generate(model, prompt, **settings)
        with hiprune.prune(model, config(retention)):
            torch.manual_seed(0)
            found = generate(model, arguments, **settings)
        assert torch.equal(found[:, -STEPS:], expected[:, -STEPS:])


@over_all
def test_encode_images_and_maps(family):
    model, arguments = made.load(family), made.inputs(family, [1])
    (views,) = made.images_of(family, arguments)
    tower = model.model.image_tower if family == "video_llava" else model.model.vision_tower
    with hiprune.prune(model, config(0.334)) as pruned:
        pixels = arguments[made.pixels_name(family)]
        features = pruned.encode_images(pixels, arguments.get("image_sizes"))
    eager = made.load(family, "eager")
    by_hand = oracle.features_by_hand(family, eager, arguments, 0.334)[made.IMAGE]
    close(features, by_hand)
    found = hiprune.received_attention_maps(tower, views)
    assert found.shape == (made.LAYERS, len(views), made.SIDE[family] ** 2)
    tower = eager.model.image_tower if family == "video_llava" else eager.model.vision_tower
    with torch.no_grad():
        attentions = tower(views, output_attentions=True).attentions
    for layer, expected in zip(found, attentions, strict=True):
        expected = expected.mean(dim=(1, 2))
        close(layer, expected[:, expected.shape[1] - layer.shape[1] :])


def test_sizes_of_llava_onevision_in_any_form():
    model, arguments = made.load("llava_onevision"), made.inputs("llava_onevision", [1, 1])
    pixels, sizes = arguments["pixel_values"], arguments["image_sizes"]
    plain = tuple(map(tuple, sizes.tolist()))
    with hiprune.prune(model, config(0.334)) as pruned:
        expected = pruned.encode_images(pixels, sizes)
        for form in (plain, list(plain), (sizes, [1, 1]), (plain, torch.tensor([1, 1]))):
            close(pruned.encode_images(pixels, form), expected)


def test_an_aspect_ratio_without_a_number_of_views(monkeypatch):
    model = made.load("llava_onevision")
    monkeypatch.setattr(model.config, "vision_aspect_ratio", "anyres")
    with pytest.raises(HiPruneError, match="vision_aspect_ratio='anyres': expected 'anyres_max_N'"):
        hiprune.apply(model)


@over_all
def test_the_default_layer_and_budget(family):
    layers, layer = (26, 10) if family == "llava_onevision" else (24, 9)
    found = HiPruneConfig.from_env(family, {}, layers=layers)
    retention = 85 if family == "video_llava" else 0.334
    assert (found.object_layer, found.alpha, found.retention) == (layer, 0.1, retention)


@pytest.mark.parametrize("family", ["internvl", "llava_onevision"])
def test_the_variable_takes_tokens_or_a_share(family):
    most = {"internvl": 13 * 256, "llava_onevision": 10 * 729}[family]
    for text, value in (("1", 1), ("1.0", 1.0), (str(most), most), ("0.25", 0.25), ("64", 64)):
        found = HiPruneConfig.from_env(family, {"HIPRUNE_RETENTION": text}).retention
        assert (type(found), found) == (type(value), value)
    for text in ("0", "1.5", "-1", str(most + 1), "all", "", "nan", "0.0", "1_0"):
        with pytest.raises(
            HiPruneError, match=r"HIPRUNE_RETENTION=.*expected an integer from 1 to"
        ):
            HiPruneConfig.from_env(family, {"HIPRUNE_RETENTION": text})


@pytest.mark.parametrize(
    "vision",
    [{"use_qk_norm": True, "norm_type": "rms_norm"}, {"use_mean_pooling": False}],
    ids=["6B's norms", "a last norm"],
)
def test_internvits_norms(vision):
    """Of the larger InternViT; queries and keys are scored as they attend."""
    model, arguments = made.load("internvl", "sdpa", **vision), made.inputs("internvl", [1, 2])
    with hiprune.prune(model, config(0.334)):
        logits, ids = forward(model, arguments).logits, generate(model, arguments)
    eager = made.load("internvl", "eager", **vision)
    prompt = oracle.prompt_by_hand(
        model, arguments, oracle.features_by_hand("internvl", eager, arguments, 0.334)
    )
    real = prompt["attention_mask"].bool()
    close(logits[real], forward(model, prompt).logits[real])
    assert torch.equal(ids[:, -STEPS:], decode_by_hand(model, prompt, STEPS))
    found = hiprune.received_attention_maps(model.model.vision_tower, arguments["pixel_values"])
    with torch.no_grad():
        out = eager.model.vision_tower(arguments["pixel_values"], output_attentions=True)
    close(found, torch.stack([each.mean(dim=(1, 2))[:, 1:] for each in out.attentions]))


def test_a_table_copied_in_inference_serves_training_later():
    """It is kept for all passes on that device, and autograd cannot save an inference tensor."""
    tokens, device = Tokens(4, weights=torch.ones(2, 2)), torch.device("meta")
    with torch.inference_mode():
        assert tokens.table("weights", device).device == device
    assert not tokens.table("weights", device).is_inference()


def test_internvl_prompts_that_do_not_fit_are_refused():
    model, arguments = made.load("internvl"), made.inputs("internvl", [2])
    with hiprune.prune(model, config(0.334)) as pruned:
        for change, match in (
            ({"input_ids": arguments["input_ids"][:, :-8], "attention_mask": None}, None),
            ({"pixel_values": arguments["pixel_values"][1:]}, "expected 4, as many as"),
            ({"pixel_values": arguments["pixel_values"][0]}, r"expected a tensor \(tiles, 3, H, W"),
            (
                {"input_ids": arguments["input_ids"].index_fill(1, torch.tensor([5]), 7)},
                "multiples",
            ),
        ):
            if match is not None:
                with pytest.raises(HiPruneError, match=match):
                    forward(model, arguments | change)
        with pytest.raises(HiPruneError, match="expected 3, as many as"):
            pruned.encode_images(arguments["pixel_values"], [2, 1])
        assert len(pruned.encode_images(arguments["pixel_values"], [3, 1])) == 2
    for name in ("vision_feature_select_strategy", "vision_feature_layer"):
        other = copy.deepcopy(model)
        setattr(other.config, name, {"vision_feature_layer": [-1, -2]}.get(name, "full"))
        with pytest.raises(HiPruneError, match=name):
            hiprune.apply(other)


def test_a_large_image_of_llava_onevision_counts_as_ten_views():
    """As the unpatched model scales it down; here 13 views."""
    model = made.load("llava_onevision")
    pixels = torch.stack([made.picture("llava_onevision", view) for view in range(13)])
    sizes = torch.tensor([[210, 280]])
    for retention, each in ((1.0, 250 // 13), (0.5, 125 // 13), (26, 2)):
        with hiprune.prune(model, config(retention)) as pruned:
            (features,) = pruned.encode_images(pixels, sizes)
        assert pruned.selections[0].indices.shape == (13, each)
        assert len(features) == 13 * each
    with hiprune.prune(model, config(12)) as pruned:
        with pytest.raises(HiPruneError, match="no token for each of the 13 views"):
            pruned.encode_images(pixels, sizes)
        with pytest.raises(HiPruneError, match="image_sizes=None"):
            pruned.encode_images(pixels)
        with pytest.raises(HiPruneError, match="batch_num_images"):
            forward(model, made.inputs("llava_onevision", [1]) | {"batch_num_images": [2]})


def test_video_llava_takes_its_older_argument():
    """pixel_values_images, which transformers 5.23 renames."""
    model, arguments = made.load("video_llava"), made.inputs("video_llava", [1])
    pixels = made.pixels_name("video_llava")
    renamed = {n: v for n, v in arguments.items() if n != pixels}
    renamed["pixel_values_images"] = arguments[pixels]
    with hiprune.prune(model, config(8)) as pruned:
        assert torch.equal(forward(model, renamed).logits, forward(model, arguments).logits)
        assert torch.equal(generate(model, renamed), generate(model, arguments))
        with pytest.raises(HiPruneError, match=r"expected a tensor \(videos, frames, 3, H, W\)"):
            forward(
                model,
                {
                    "input_ids": torch.tensor([[made.VIDEO]]),
                    "pixel_values_videos": arguments[pixels],
                },
            )
        assert pruned.selections[0].indices.shape == (1, 8)
    for retention in (26, 1.5):
        with pytest.raises(HiPruneError, match="retention"):
            hiprune.apply(model, config(retention))
