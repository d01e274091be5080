"""The prompt's words, for the methods that read them: which they are, and what is made of them."""

from __future__ import annotations

import functools

import pytest
import torch
from family import PACKAGE, forward
from hiprune.models.clip_text import user_words as words_in
from hiprune.models.words import user_words
from matrix import FAMILIES

import hiprune
from hiprune import ClipText, HiPruneConfig, HiPruneError, choose_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
METHODS = ("hiprune_pp", "cdpruner")
# Of families whose tokens are known to be comparable with words; the others refuse by name.
READERS = {name: family for name, family in FAMILIES.items() if family.looked is not None}
over_readers = pytest.mark.parametrize("family", READERS.values(), ids=READERS)
LONGEST = 8  # tokens that the small text encoder takes at once


class Tokenizer:
    """A number a word, between marks; the end mark is the greatest."""

    eos_token_id = 99

    def __call__(self, words, truncation):
        assert truncation is False
        ids = [1 + sum(word.encode()) % 90 for word in words.split()]
        return {"input_ids": [98, *ids, self.eos_token_id]}

    def decode(self, ids):
        return "USER: " + " ".join(f"word{number}" for number in ids) + " ASSISTANT:"


@functools.cache
def clip_of(width):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(3)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    text = {"vocab_size": 100, "hidden_size": 12, "max_position_embeddings": LONGEST, **layers}
    text |= {"eos_token_id": 99, "bos_token_id": 98, "pad_token_id": 0}
    vision = {"hidden_size": width, "image_size": 28, "patch_size": 14, **layers}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10))


def text_of(family, model):
    """What apply is given."""
    if family.mrope:
        return None
    width = family.tower(model).config.hidden_size
    return ClipText(clip_of(width), Tokenizer(), prompts=Tokenizer())


def config(family, method, retention=None):
    retention = family.third if retention is None else retention
    return HiPruneConfig(retention, alpha=0.5, object_layer=family.object_layer, method=method)


def said_by_hand(family, model, arguments):
    """(M, E) of each prompt. The prompts of the tests have no template: all text is the user's."""
    found = []
    for number, ids in enumerate(arguments["input_ids"]):
        ids = ids[arguments["attention_mask"][number].bool()]
        ids = ids[ids != family.placeholder]
        if family.mrope:
            around = (model.config.vision_start_token_id, model.config.vision_end_token_id)
            ids = ids[(ids != around[0]) & (ids != around[1])]
            found.append(model.get_input_embeddings()(ids).float().mean(dim=0, keepdim=True))
        else:
            words = " ".join(f"word{number}" for number in ids.tolist())
            found.append(text_of(family, model).embed(words))
    return found


@over_readers
@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_is_what_choose_tokens_keeps_by_hand(family, method):
    model = family.model()
    images = [2, 1]
    arguments = family.inputs(model, images)
    looked, text = family.looked(model, arguments), text_of(family, model)
    with torch.no_grad():
        said = said_by_hand(family, model, arguments)
    said = [words for words, count in zip(said, images, strict=True) for _ in range(count)]
    settings = config(family, method)
    with hiprune.prune(model, settings, text) as pruned:
        forward(model, arguments)
        selections = pruned.selections
        without = pruned.encode_images(*family.images(arguments), text=said)
        again = pruned.selections
        with pytest.raises(HiPruneError, match=f"^text=None: method '{method}' reads"):
            pruned.encode_images(*family.images(arguments))
    assert len(selections) == len(looked) == len(said) == 3
    alpha = {"alpha": 0.5} if method == "hiprune_pp" else {}
    for number, (views, columns, needs) in enumerate(looked):
        if text is not None:
            tower = family.tower(model)
            norm = getattr(tower, "vision_model", tower).post_layernorm
            embeds = norm(needs["features"]).float() @ text.clip.visual_projection.weight.T
            needs["image_embeds"] = embeds.detach()
        total = settings.budget(views * needs["projected"].shape[1])
        expected = choose_tokens(
            method, budget=total // views, columns=columns, **needs, text_embeds=said[number],
            **alpha,
        )  # fmt: skip
        assert torch.equal(selections[number].indices, expected.indices)
        assert torch.equal(again[number].indices, expected.indices)
        assert len(without[number]) == total // views * views


@over_readers
@pytest.mark.parametrize("method", METHODS)
def test_a_full_budget_changes_nothing_and_generation_goes_on(family, method):
    model = family.model()
    arguments = family.inputs(model, [1, 2, 0])
    plain, whole = family.plain(model, arguments)
    expected = family.answer(plain, whole)
    with hiprune.prune(model, config(family, method, family.full), text_of(family, model)):
        assert family.answer(model, arguments) == expected
    with hiprune.prune(model, config(family, method), text_of(family, model)) as pruned:
        family.answer(model, arguments)
        assert all(s.indices.shape[1] < s.keep.shape[1] for s in pruned.selections)


@over_readers
def test_without_a_text_encoder_it_is_said_what_to_pass(family, monkeypatch):
    model, settings = family.model(), config(family, "hiprune_pp")
    if family.mrope:
        with pytest.raises(HiPruneError, match=r"^text=str: expected None"):
            hiprune.apply(model, settings, "openai/clip-vit-large-patch14-336")
        return
    if PACKAGE:  # which tells its tower's checkpoint itself
        monkeypatch.setattr(model.get_vision_tower(), "vision_tower_name", "/nowhere/clip")
        with pytest.raises(HiPruneError, match=r"^text='/nowhere/clip': no CLIP was loaded"):
            hiprune.apply(model, settings)
    else:
        with pytest.raises(HiPruneError, match=r"^text=None: .* expected its path or name"):
            hiprune.apply(model, settings)
    with pytest.raises(HiPruneError, match=r"^text='/nowhere/clip': no CLIP was loaded"):
        hiprune.apply(model, settings, "/nowhere/clip")
    with pytest.raises(HiPruneError, match=r"^text: CLIP with image features of 6; expected"):
        hiprune.apply(model, settings, ClipText(clip_of(6), Tokenizer()))
    no_tokenizer = ClipText(clip_of(family.tower(model).config.hidden_size), Tokenizer())
    model.config._name_or_path = "/nowhere/model"
    with (
        hiprune.prune(model, settings, no_tokenizer),
        pytest.raises(HiPruneError, match=r"^text: no tokenizer .* '/nowhere/model'"),
    ):
        forward(model, family.inputs(model, [1]))
    hiprune.apply(model, config(family, "hiprune"), "/nowhere/clip").remove()  # reads no text


def test_a_clip_checkpoint_is_loaded_by_its_path(tmp_path):
    from transformers import CLIPTokenizer

    clip_of(16).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text('{"<|startoftext|>": 98, "<|endoftext|>": 99, "a</w>": 5}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(
        tmp_path
    )
    found = ClipText.found(str(tmp_path)).embed("a a")
    assert found.shape == (1, 10)


def test_long_words_are_cut_into_segments_as_long_as_the_encoder_takes():
    text = ClipText(clip_of(16), Tokenizer())
    short, long = "a b c", " ".join("abcdefghijk")
    ids = Tokenizer()(short, False)["input_ids"]
    clip = clip_of(16)
    with torch.no_grad():  # the model's own pooling, of a text that fits
        hidden = clip.text_model(torch.tensor([ids]))[0][:, len(ids) - 1]
        expected = clip.text_projection(hidden)
    torch.testing.assert_close(text.embed(short), expected, rtol=1e-5, atol=1e-5)
    ids = Tokenizer()(long, False)["input_ids"]
    assert len(ids) == 13
    first, second = ids[:LONGEST], ids[LONGEST:]
    with torch.no_grad():
        places = (first.index(max(first)), len(second) - 1)
        hidden = [
            clip.text_model(torch.tensor([part]))[0][:, place]
            for part, place in zip((first, second), places, strict=True)
        ]
        expected = clip.text_projection(torch.cat(hidden))
    torch.testing.assert_close(text.embed(long), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("<s> A chat. USER: <image>\nWhat is it? ASSISTANT:", "What is it?"),
        ("<s>[INST] <image>\nHow many? [/INST]", "How many?"),
        ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n<image>\nA cat?<|im_end|>\n"
         "<|im_start|>assistant\n", "A cat?"),
        ("USER: <image>\nOne? ASSISTANT: Yes.</s>USER: Two? ASSISTANT:", "One? Two?"),
        ("<image>\nno template", "no template"),
    ],
)  # fmt: skip
def test_what_the_user_says_is_found_in_the_prompt(prompt, words):
    assert words_in(prompt) == words


def test_the_users_turns_are_found_in_ids():
    start, end, image, user, system, line = 1, 2, 5, 7, 8, 9
    turn = {
        "system": [start, system, line, 40, 41, end, line],
        "user": [start, user, line, 50, image, image, 51, 52, end, line],
        "answer": [start, 10, line, 60, end, line],
        "more": [start, user, line, 53, end, line],
        "open": [start, 10, line],
    }
    whole = [token for part in turn.values() for token in part]
    rows = [whole, [0, 0, *whole[:-2]], [0] * (len(whole) - 6) + [start, image, 50, 51, image, 52]]
    ids = torch.tensor(rows)
    real = ids != 0
    said = user_words(ids, real, ids == image, ids == end)
    found = [row[there].tolist() for row, there in zip(ids, said, strict=True)]
    assert found == [[50, 51, 52, 53], [50, 51, 52, 53], [start, 50, 51, 52]]


@pytest.mark.skipif("qwen2_5_vl" not in FAMILIES, reason="Qwen is of transformers")
def test_another_question_keeps_other_tokens_and_leaves_other_prompts_alone():
    family = FAMILIES["qwen2_5_vl"]
    model = family.model()
    arguments = family.inputs(model, [1, 1])
    settings = HiPruneConfig(
        0.3, object_layer=family.object_layer, method="hiprune_pp", settings={"beta": 1.0}
    )
    kept = []
    for change in (0, 7):
        ids = arguments["input_ids"].clone()
        ids[1, -2:] += change
        with hiprune.prune(model, settings) as pruned:
            forward(model, arguments | {"input_ids": ids})
            kept.append([selection.indices for selection in pruned.selections])
    assert torch.equal(kept[0][0], kept[1][0])
    assert not torch.equal(kept[0][1], kept[1][1])


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in READERS])
def test_a_family_whose_tokens_are_not_compared_with_words_refuses_the_methods(name):
    family = FAMILIES[name]
    for method in METHODS:
        with pytest.raises(HiPruneError, match=f"^method='{method}': needs .*text_embeds"):
            hiprune.apply(family.model(), config(family, method))
