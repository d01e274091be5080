"""Training of the tiny models: scenes, questions, shared prefixes, resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers", minversion="5")

from scripts.tiny import loop  # noqa: E402
from scripts.tiny.batches import IGNORED, Steps, targets  # noqa: E402
from scripts.tiny.export import export  # noqa: E402
from scripts.tiny.loop import FAMILIES, make_trainee  # noqa: E402
from scripts.tiny.questions import ANSWERS, KINDS, MARGIN, ask  # noqa: E402
from scripts.tiny.recipe import RECIPES, Recipe, schedule  # noqa: E402
from scripts.tiny.scenes import COLOURS, SHAPES, make_scene  # noqa: E402
from scripts.tiny.trainee import COLUMNS, Trainee  # noqa: E402

NUMBER_OF = {"Zero": 0, "One": 1, "Two": 2, "Three": 3, "Four": 4}
PLURALS = {**{f"{shape}s": shape for shape in SHAPES}, "crosses": "cross"}


@pytest.fixture(scope="module", params=FAMILIES)
def trainee(request, tmp_path_factory) -> Trainee:
    torch.manual_seed(0)
    return make_trainee(request.param, tmp_path_factory.mktemp("trained")).eval()


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed=5, index=index, side=168) for index in range(60)]


def steps(trainee: Trainee, size: int = 2, **settings) -> Steps:
    defaults = {"seed": 3, "per_kind": 2, "steps": 4}
    shared = trainee.prompts, trainee.drawing, trainee.grids
    return Steps(*shared, size=size, **{**defaults, **settings})


def test_scene_follows_from_seed_and_index():
    one, same = make_scene(1, 2, 168), make_scene(1, 2, 168)
    assert (one.image == same.image).all()
    assert (one.masks == same.masks).all()
    assert one.things == same.things
    for other in (make_scene(1, 3, 168), make_scene(2, 2, 168)):
        assert (one.image != other.image).any()
    assert make_scene(1, 2, 336).things == one.things  # the same scene, larger


def test_masks_are_where_the_things_are(scenes):
    for scene in scenes:
        assert 2 <= len(scene.things) == len(scene.masks)
        assert scene.masks.sum(axis=0).max() == 1  # no pixel belongs to two
        for thing, mask in zip(scene.things, scene.masks, strict=True):
            y, x = (np.argwhere(mask) + 0.5).mean(axis=0) / len(mask)
            assert abs(x - thing.x) < 0.03 and abs(y - thing.y) < 0.03
            colour = scene.image[mask].astype(float).mean(axis=0)
            brightness = colour / np.linalg.norm(colour)
            names = {n: np.array(c) / np.linalg.norm(c) for n, c in COLOURS.items()}
            nearest = sorted(names, key=lambda name: -(names[name] @ brightness))
            assert thing.colour in nearest[:2]


def test_dense_targets_are_those_of_the_masks(scenes):
    for scene in scenes[:20]:
        shape, colour, centre = targets(scene, COLUMNS)
        coverage = scene.coverage(COLUMNS).reshape(len(scene.things), -1)
        assert ((shape == 0) == (coverage.max(axis=0) == 0)).all()
        assert ((shape == IGNORED) == (colour == IGNORED)).all()
        assert centre.sum() == len(scene.things)
        token = coverage.sum(axis=0).argmax()
        thing = scene.things[coverage[:, token].argmax()]
        assert SHAPES[shape[token] - 1] == thing.shape
        assert list(COLOURS)[colour[token] - 1] == thing.colour


def test_answers_are_true(scenes):
    """Every answer once more, from the question's words and the masks."""
    seen = set()
    for index, scene in enumerate(scenes):
        asked = ask(scene, np.random.default_rng(index), per_kind=3)
        assert len(asked) == 3 * len(KINDS)
        for question in asked:
            seen.add(question.answer)
            assert question.answer == answer(scene, question.text), question
    assert seen <= set(ANSWERS) and len(seen) > 20


def answer(scene, text: str) -> str:
    words = text.rstrip("?").split()
    shapes = [PLURALS.get(word, word) for word in words if PLURALS.get(word, word) in SHAPES]
    colours = [word for word in words if word in COLOURS]
    named = [
        index
        for index, thing in enumerate(scene.things)
        if thing.shape in (shapes or SHAPES) and thing.colour in (colours or COLOURS)
    ]
    if text.startswith("Is there"):
        return "Yes" if named else "No"
    if text.startswith("How many"):
        return next(word for word, number in NUMBER_OF.items() if number == len(named))
    (only,) = named
    if text.startswith("What"):
        return getattr(scene.things[only], "colour" if "color" in words else "shape").capitalize()
    middle = np.argwhere(scene.masks[only]).mean(axis=0) / scene.masks.shape[1] - 0.5
    first, second, axis = ("Left", "Right", 1) if "left" in words else ("Top", "Bottom", 0)
    assert abs(middle[axis]) > MARGIN - 0.03
    return first if middle[axis] < 0 else second


def test_existence_is_balanced_and_every_answer_is_one_token(scenes, trainee):
    rng = np.random.default_rng(0)
    asked = [q for scene in scenes for q in ask(scene, rng, per_kind=8)]
    yes = [q.answer == "Yes" for q in asked if q.kind == "existence"]
    assert 0.42 < np.mean(yes) < 0.58
    prompts = trainee.prompts
    ids = {word: prompts.question("What color is the ring?", word, False) for word in ANSWERS}
    assert len({len(question) for question in ids.values()}) == 1
    assert len({question[-1] for question in ids.values()}) == len(ANSWERS)


def test_batches_follow_from_the_step(trainee):
    one, same = steps(trainee)[2], steps(trainee)[2]
    assert all(torch.equal(getattr(one, name), getattr(same, name)) for name in vars(one))
    assert not torch.equal(one.images, steps(trainee)[1].images)


@torch.no_grad()
def test_shared_prefix_gives_what_plain_prompts_give(trainee):
    """Training's pass over all questions at once, and the transformers model on each prompt."""
    batch = steps(trainee)[0]
    model = trainee.model
    embedded = trainee.vision(batch.images).embedded
    answers, ends = trainee.answer(embedded, batch)
    image_token = model.config.image_token_id
    # Of LLaVA-NeXT's base view some pixels are rounded up here and down there.
    tolerance = 2e-3 if trainee.family == "llava_next" else 1e-4
    for row, column in ((0, 0), (0, 9), (1, 4)):
        at = batch.answer_at[row, column]
        image = torch.full((embedded.shape[1],), image_token)
        question = batch.questions[row, column, : at + 1]
        ids = torch.cat([batch.before, image, batch.after, question])[None]
        logits = model(input_ids=ids, **visual(trainee, batch.images[row], ids)).logits[0]
        assert torch.allclose(logits[-2], answers[row, column], atol=tolerance)
        assert torch.allclose(logits[-1], ends[row, column], atol=tolerance)


def visual(trainee: Trainee, image: torch.Tensor, ids: torch.Tensor) -> dict:
    """What the released image processors make of an image."""
    picture = Image.fromarray(image.numpy())
    if trainee.family != "qwen2_5_vl":
        config = trainee.model.config
        view = config.vision_config.image_size
        settings = {"size": {"shortest_edge": view}, "crop_size": {"height": view, "width": view}}
        if trainee.family == "llava_next":
            pinpoints = config.image_grid_pinpoints
            processor = transformers.LlavaNextImageProcessor(
                **settings, image_grid_pinpoints=pinpoints
            )
        else:
            processor = transformers.CLIPImageProcessor(**settings)
        return dict(processor(images=picture, return_tensors="pt"))
    inputs = dict(transformers.Qwen2VLImageProcessor()(images=picture, return_tensors="pt"))
    return {**inputs, "mm_token_type_ids": (ids == trainee.model.config.image_token_id).int()}


def test_a_run_cut_short_cools_from_where_its_cosine_is():
    whole = Recipe(steps=1000, warm_up=10)
    short = replace(whole, steps=600, horizon=1000, cool=100)
    assert [schedule(s, short) for s in range(501)] == [schedule(s, whole) for s in range(501)]
    rates = [schedule(s, short) for s in range(500, 601)]
    steps = [a - b for a, b in pairwise(rates)]
    assert steps == pytest.approx([steps[0]] * 100) and steps[0] > 0  # a line
    assert rates[-1] == pytest.approx(schedule(1000, whole))


def test_resumed_training_ends_where_uninterrupted_training_does(tmp_path):
    recipe = replace(RECIPES["llava"], steps=4, batch=2, per_kind=1, tower_steps=1)
    settings = {"measure_every": 2, "scenes": 4}
    loop.train(recipe, tmp_path / "whole", **settings)
    _, done = loop.train(recipe, tmp_path / "parts", until=2, **settings)
    assert not done
    _, done = loop.train(recipe, tmp_path / "parts", resume=True, **settings)
    assert done
    curves = [
        [json.loads(line) for line in (tmp_path / run / loop.CURVE).read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    for whole, part in zip(*curves, strict=True):
        for name in ("step", "loss", "accuracy", "rate"):
            assert whole[name] == part[name]
    with pytest.raises(SystemExit, match="asked for"):
        loop.train(replace(recipe, rate=1e-4), tmp_path / "parts", resume=True, **settings)


def test_checkpoint_reads_prompts_as_training_wrote_them(trainee, tmp_path):
    export(trainee, tmp_path)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*")) < 10e6
    batch = steps(trainee, plain=True)[0]
    text = ask(make_scene(3, 0, trainee.drawing.side), np.random.default_rng(0))[0].text
    content = [{"type": "image"}, {"type": "text", "text": text}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    picture = Image.fromarray(batch.images[0].numpy())
    inputs = processor(text=prompt, images=picture, return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    image = model.config.image_token_id
    first, last = ids.index(image), len(ids) - ids[::-1].index(image)
    visual_tokens = trainee.vision(batch.images[:1]).embedded.shape[1]
    assert ids.count(image) == last - first == visual_tokens
    forms = [
        [*after, *trainee.prompts.question(text, "Yes", False)[:-1]]
        for before, after in trainee.prompts.prefixes
        if list(before) == ids[:first]
    ]
    assert ids[last:] in forms
    assert model.generate(**inputs.to(model.dtype), max_new_tokens=2).shape[1] == len(ids) + 2
