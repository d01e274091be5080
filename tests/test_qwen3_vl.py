"""Qwen2-VL and Qwen3-VL, beside the matrix: videos, DeepStack and M-RoPE, experts, beams."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="needs the environment .venv-qwen")

import qwen3_models as made
from family import close, forward
from qwen_models import pixels as patches_of

import hiprune
from hiprune import HiPruneConfig, HiPruneError

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = ("qwen2_vl", "qwen3_vl", "qwen3_vl_moe")
DEEP = FAMILIES[1:]
over_all = pytest.mark.parametrize("family", FAMILIES)
over_deep = pytest.mark.parametrize("family", DEEP)


def config(retention):
    return HiPruneConfig(retention, alpha=made.ALPHA, object_layer=made.OBJECT_LAYER)


def budget(retention):
    def tokens(count):
        if isinstance(retention, int):
            return min(retention, count)
        return max(1, round(retention * count))

    return tokens


def generate(model, arguments, **settings):
    return model.generate(**arguments, **{"max_new_tokens": 3, "do_sample": False, **settings})


def row_of(arguments, number, images):
    """The prompt of one row, without padding; ``images``: of each row. Videos: one a row."""
    real = arguments["attention_mask"][number].bool()
    found = {n: arguments[n][number, real][None] for n in ("input_ids", "mm_token_type_ids")}
    for pixels, sizes, counts in (
        ("pixel_values", "image_grid_thw", images),
        ("pixel_values_videos", "video_grid_thw", [1] * len(images)),
    ):
        if sizes in arguments and counts[number]:
            grids, own = arguments[sizes], slice(sum(counts[:number]), sum(counts[: number + 1]))
            parts = arguments[pixels].split(grids.prod(dim=1).tolist())
            found |= {pixels: torch.cat(parts[own]), sizes: grids[own]}
    return found


def check(model, arguments, images, retention, logits, ids=None, **spoilt):
    """Logits and answers of the pruned prompts are those made by hand, row by row."""
    width = arguments["input_ids"].shape[1]
    for number in range(len(images)):
        row = row_of(arguments, number, images)
        expected, answer = made.by_hand(
            model, row, budget(retention), 3 if ids is not None else 1, **spoilt
        )
        close(logits[number, -len(expected) :], expected)
        if ids is not None:
            assert torch.equal(ids[number, :width], arguments["input_ids"][number])
            assert ids[number, width:].tolist() == answer


@over_all
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("images", "frames"), [([1], 1), ([0, 1], 3), ([0], 8), ([2, 0, 1], 0)])
def test_images_and_videos(family, attention, images, frames):
    """Frames of a video are pruned one by one; of Qwen3-VL the times between them stay."""
    model = made.load(family, attention)
    arguments = made.inputs(family, images, video_frames=frames)
    expected, expected_ids = forward(model, arguments).logits, generate(model, arguments)
    with hiprune.prune(model, config(1.0)):
        real = arguments["attention_mask"].bool()
        close(forward(model, arguments).logits[real], expected[real], exact=True)
        assert torch.equal(generate(model, arguments), expected_ids)
    for retention in (0.334, 2):
        with hiprune.prune(model, config(retention)) as pruned:
            logits, ids = forward(model, arguments).logits, generate(model, arguments)
        kept = [selection.indices.shape for selection in pruned.selections]
        grids = [*arguments.get("image_grid_thw", []), *arguments.get("video_grid_thw", [])]
        tokens = budget(retention)
        assert kept == [(int(t), tokens(int(h * w) // 4)) for t, h, w in grids]
        check(model, arguments, images, retention, logits, ids)


@over_all
def test_an_image_and_a_frame_keep_their_tokens_whatever_is_beside_them(family):
    model, arguments = made.load(family), made.inputs(family, [2, 0], video_frames=3)
    with hiprune.prune(model, config(0.334)) as pruned:
        forward(model, arguments)
        together = pruned.selections
        for index in range(2):
            forward(model, made.inputs(family, [1], first=index))
            assert torch.equal(pruned.selections[0].indices, together[index].indices)
        video, grid = arguments["pixel_values_videos"], arguments["video_grid_thw"][:1]
        frames = video[: int(grid.prod())].chunk(3)
        for number, frame in enumerate(frames):
            pruned.encode_images(frame, torch.tensor([[1, *grid[0, 1:].tolist()]]))
            found = pruned.selections[0].indices[0]
            assert torch.equal(found, together[2].indices[number])


@over_all
def test_encode_images_gives_what_the_unpatched_model_makes_of_the_kept(family):
    model, arguments = made.load(family), made.inputs(family, [3])
    images = arguments["pixel_values"], arguments["image_grid_thw"]
    with torch.no_grad():
        expected = model.get_image_features(*images, return_dict=True).pooler_output
    with hiprune.prune(model, config(4)) as pruned:
        found = pruned.encode_images(*images)
    for features, selection, whole in zip(found, pruned.selections, expected, strict=True):
        close(features, whole[selection.indices[0]])


@over_all
def test_maps_of_all_blocks(family):
    model, grid = made.load(family), (1, *made.GRIDS[0])
    pixels = patches_of(made.GRIDS[0], 0)
    found = hiprune.received_attention_maps(
        model.model.visual, pixels, grid_thw=torch.tensor([grid])
    )
    _, scores = made.look(model, pixels, grid)
    assert found.shape == (made.BLOCKS, 1, grid[1] * grid[2] // 4)
    for number in (made.OBJECT_LAYER, made.BLOCKS):
        close(found[number - 1, 0], scores[number].float())


@over_all
def test_beams_and_several_answers(family):
    """Their scores are those of the same ids by hand: all copies of a prompt have its features."""
    model, arguments = made.load(family), made.inputs(family, [1, 2])
    for settings in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        torch.manual_seed(0)
        expected = generate(model, arguments, **settings)
        with hiprune.prune(model, config(1.0)):
            torch.manual_seed(0)
            assert torch.equal(generate(model, arguments, **settings), expected)
    with hiprune.prune(model, config(0.334)):
        found = generate(
            model, arguments, num_beams=3, num_return_sequences=2, output_scores=True,
            return_dict_in_generate=True, length_penalty=0.0,
        )  # fmt: skip
    answers = found.sequences[:, arguments["input_ids"].shape[1] :]
    for copy, (answer, score) in enumerate(zip(answers, found.sequences_scores, strict=True)):
        likely = []

        def pick(said, logits, answer=answer, likely=likely):
            likely.append(logits.log_softmax(-1)[0, answer[len(said)]])
            return answer[len(said)][None]

        row = row_of(arguments, copy // 2, [1, 2])
        made.by_hand(model, row, budget(0.334), 3, pick)
        close(score, torch.stack(likely).sum())


# Both were lost, and taken for the harm that pruning does, where a comparison went through
# generate(inputs_embeds) alone: the checks above have to fail then.


@over_deep
@pytest.mark.parametrize("lost", ["planes", "positions"])
@pytest.mark.parametrize("retention", [1.0, 0.334])
def test_without_deepstack_or_positions_the_checks_fail(family, lost, retention, monkeypatch):
    model, arguments = made.load(family), made.inputs(family, [1])
    expected = forward(model, arguments).logits
    adapter = hiprune.models.qwen3_vl.Qwen3VL
    with monkeypatch.context() as patch:
        if lost == "planes":
            patch.setattr(adapter, "beside", lambda *_: None)
        else:
            patch.setattr(adapter, "positions", lambda *_: (None, None))
        with hiprune.prune(model, config(retention)):
            model.model.rope_deltas = None
            logits, ids = forward(model, arguments).logits, generate(model, arguments)
    with pytest.raises(AssertionError, match="not close"):
        check(model, arguments, [1], retention, logits, ids)
    if retention == 1.0:
        with pytest.raises(AssertionError, match="not close"):
            close(logits, expected)
    # And what was lost is just that.
    check(model, arguments, [1], retention, logits, spoil=lost)


@over_deep
def test_planes_that_nobody_takes_are_an_error(family, monkeypatch):
    """Never silently without DeepStack."""
    model, arguments = made.load(family), made.inputs(family, [1])
    text = model.model.language_model
    own = type(text).forward

    def forward_of_another(*args, hiprune_beside=None, **kwargs):
        return own(text, *args, **kwargs)

    with hiprune.prune(model, config(0.334)):
        with monkeypatch.context() as patch:
            patch.setattr(text, "forward", forward_of_another)
            for run in (forward, generate):
                with pytest.raises(HiPruneError, match="its language model ran without"):
                    run(model, arguments)
        logits = forward(model, arguments).logits
    check(model, arguments, [1], 0.334, logits)


@over_deep
def test_deepstacks_mergers_see_kept_tokens_alone(family):
    """And so does the last of them behind a block that was cut short."""
    model, arguments = made.load(family), made.inputs(family, [2])
    visual, seen = model.model.visual, []
    merger = type(visual.merger.linear_fc1)
    linears = {each.linear_fc1 for each in (visual.merger, *visual.deepstack_merger_list)}
    with hiprune.prune(model, config(0.334)) as pruned, pytest.MonkeyPatch.context() as patch:
        own = merger.forward

        def forward_of(module, x):
            if module in linears:
                seen.append(len(x))
            return own(module, x)

        patch.setattr(merger, "forward", forward_of)
        forward(model, arguments)
    assert seen == [sum(selection.indices.numel() for selection in pruned.selections)] * 4


@pytest.mark.parametrize(
    ("family", "depth", "layer"),
    [("qwen2_vl", 32, 16), ("qwen3_vl", 27, 14), ("qwen3_vl", 24, 12), ("qwen3_vl_moe", 27, 14)],
)
def test_the_default_layer(family, depth, layer):
    name = family.removesuffix("_moe")
    found = HiPruneConfig.from_env(name, {"HIPRUNE_QWEN_RETENTION": "0.5"}, layers=depth)
    assert (found.object_layer, found.alpha, found.retention) == (layer, 0.1, 0.5)
    with hiprune.prune(made.load(family)) as pruned:
        assert (pruned.family, pruned.config.object_layer) == (name, 2)
        assert pruned.config.retention == 0.334


def test_a_score_of_cls_is_refused():
    with pytest.raises(HiPruneError, match="no CLS token"):
        hiprune.apply(made.load("qwen3_vl"), HiPruneConfig(0.5, score="cls"))
