"""scripts/demo: what the page shows, held against hiprune.prune by hand; and the page, asked."""

from __future__ import annotations

import functools
import math
import os
import re
import socket
import struct
import threading
import zlib
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

if find_spec("gradio") is None:
    pytest.skip("no gradio here", allow_module_level=True)

import hiprune
from hiprune import HiPruneConfig, HiPruneError
from hiprune.images import open_image, pad_to_square
from hiprune.show.checkpoints import ALIASES, TINY, find_checkpoint
from scripts.demo import __main__ as program
from scripts.demo import asking, drawn
from scripts.demo.loaded import Loaded, Settings

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("tiny-llava", "tiny-llava-next", "tiny-qwen")
QUESTION = "What shape is the red object?"


@functools.cache
def loaded(name: str = "tiny-llava") -> Loaded:
    return Loaded(find_checkpoint(name), "cpu", {})


@pytest.fixture(autouse=True, scope="module")
def _gradio():
    """Imported for these tests alone: each process of a run reads this file, one runs it."""
    global layout, page
    from scripts.demo import layout, page


@pytest.fixture(autouse=True, scope="module")
def _scenes_and_quick_clocks(_gradio, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn, "FOLDER", tmp_path_factory.mktemp("scenes"))
        patch.setattr(asking, "TIMES", 1)
        yield


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """500 x 300 of noise."""
    noise = np.random.default_rng(0).uniform(0, 255, (6, 10, 3)).astype(np.uint8)
    path = tmp_path_factory.mktemp("photos") / "photo.jpg"
    Image.fromarray(noise).resize((500, 300), Image.Resampling.BICUBIC).save(path)
    return path


@functools.cache
def page_of(name: str = "tiny-llava") -> page.Page:
    return page.Page(loaded(name))


def inputs_of(name: str, path: Path, question: str = QUESTION) -> dict:
    """What the model takes, put together here."""
    processor, image = loaded(name).processor, open_image(path)
    if name == "tiny-llava":
        image = pad_to_square(image, processor.image_processor.image_mean)
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    return processor(text=[text], images=[image], return_tensors="pt")


def same(one, other) -> bool:
    kinds = ("anchor", "buffer", "register", "keep", "indices")
    return all(torch.equal(getattr(one, kind), getattr(other, kind)) for kind in kinds)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chosen", [(40, 0.5, 2), (97, 0.1, 5)])
def test_what_is_drawn_is_what_the_patch_keeps(name, chosen, photo):
    """Without a run of the patched model, of a picture that was seen once."""
    desk, settings = loaded(name), Settings(*chosen)
    seen = asking.see(desk, photo)
    inputs = inputs_of(name, photo)
    config = HiPruneConfig(retention=chosen[0], alpha=chosen[1], object_layer=chosen[2])
    with hiprune.prune(desk.model, config) as pruned:
        sizes = inputs.get("image_sizes", inputs.get("image_grid_thw"))
        pruned.encode_images(inputs["pixel_values"], sizes)
        expected = pruned.selections[0]
    with desk._turn:  # whoever has the model
        assert same(asking.choose(desk, seen, settings), expected)
    views = seen.views
    assert expected.indices.numel() == chosen[0] // views * views
    assert views == {"tiny-llava-next": 5}.get(name, 1)


@pytest.mark.parametrize("name", NAMES)
def test_both_answers_are_the_models_own(name, photo, monkeypatch):
    monkeypatch.setattr(asking, "TIMES", 3)
    monkeypatch.setattr(asking, "QUICK", math.inf)  # whatever else the machine does
    desk, settings = loaded(name), Settings(40, 0.5, 2)
    found = asking.ask(desk, asking.see(desk, photo), f" {QUESTION}\n", settings)
    inputs = inputs_of(name, photo)
    ids = inputs["input_ids"]

    def answer() -> str:
        output = desk.model.generate(**inputs, do_sample=False, max_new_tokens=64)
        return desk.processor.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()

    assert found.unpruned.text == answer() != ""
    config = HiPruneConfig(retention=40, alpha=0.5, object_layer=2)
    with hiprune.prune(desk.model, config) as pruned:
        assert found.pruned.text == answer()
        assert same(found.selection, pruned.selections[0])
    placeholders = int((ids == desk.model.config.image_token_id).sum())
    assert (found.unpruned.visual, found.unpruned.prompt) == (placeholders, ids.shape[1])
    assert (found.pruned.visual, found.pruned.prompt) == (40, ids.shape[1] - placeholders + 40)
    assert found.unpruned.seconds > 0 and found.pruned.seconds > 0
    assert found.unpruned.times == found.pruned.times == 3


def test_methods_are_those_that_the_model_gives(photo):
    assert loaded().methods == (
        "hiprune", "random", "uniform", "cls", "vispruner", "scope", "divprune", "visionzip",
    )  # fmt: skip
    of_qwen = loaded("tiny-qwen")
    assert of_qwen.methods == (
        "hiprune", "hiprune_pp", "random", "uniform", "divprune", "cdpruner",
    )  # fmt: skip
    for desk in (loaded(), of_qwen):
        seen = asking.see(desk, photo)
        for method in desk.methods:
            settings = Settings(70, 0.2, 3, method)
            chosen = asking.choose(desk, seen, settings, QUESTION)
            assert asking.tokens_kept(chosen) == 70, method
            asked = asking.ask(desk, seen, QUESTION, settings)
            assert asked.pruned.visual == 70, method
            if method != "random":
                assert same(asked.selection, chosen), method
    with pytest.raises(HiPruneError, match="method='cls': expected one of hiprune, hiprune_pp"):
        asking.choose(of_qwen, seen, Settings(70, 0.2, 3, "cls"))


def test_variables_are_where_it_begins():
    environ = {
        "HIPRUNE_RETENTION": "50", "HIPRUNE_ALPHA": "0.3", "HIPRUNE_OBJECT_LAYER": "6",
        "HIPRUNE_BUFFER": "square",
    }  # fmt: skip
    desk = Loaded(find_checkpoint("tiny-llava"), "cpu", environ)
    assert desk.settings(144) == Settings(50, 0.3, 6, "hiprune")
    assert desk.config(Settings(30, 0.2, 2)).buffer == "square"
    assert desk.config(Settings(30, 0.2, 2, "cls")).buffer == "cross"
    with pytest.raises(HiPruneError, match="retention=500: expected 1 to 144"):
        Loaded(find_checkpoint("tiny-llava"), "cpu", {"HIPRUNE_RETENTION": "500"})
    # A share is one of each picture's tokens.
    assert loaded("tiny-qwen").settings(200).budget == round(0.334 * 200)
    assert (loaded().least, loaded("tiny-llava-next").least) == (1, 5)


def lines(notice: str) -> str:
    found = re.fullmatch(r'<p class="bad" role="alert">(.*)</p>', notice)
    assert found, notice
    return found[1]


def bomb(side: int) -> bytes:
    """A PNG file whose header promises so many pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_files_that_are_no_pictures_are_told_in_a_line(photo, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", False)
    (tmp_path / "text.png").write_text("not a picture at all")
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[:2000])
    (tmp_path / "huge.png").write_bytes(bomb(60000))
    (tmp_path / "folder.png").mkdir()
    start = ("", 48, 0.1, 3, "hiprune")
    for name in ("text.png", "cut.jpg", "huge.png", "folder.png", "none.png"):
        cleared, _, *pictures, summary, _, _, notice = page_of().show(str(tmp_path / name), *start)
        assert (cleared, pictures, summary) == (None, [None, None], "")
        assert lines(notice).startswith(f"{name}: ") and "expected" in lines(notice)
    assert "no picture: expected one" in lines(page_of().show(None, *start)[-1])
    Image.new("RGB", (3, 900)).save(tmp_path / "thin.png")
    notice = page_of("tiny-qwen").show(str(tmp_path / "thin.png"), *start)[-1]
    assert lines(notice).startswith("image of 3 x 900 pixels: the model&#x27;s image processor")
    assert not caplog.records, "these are the user's, no fault of the page"


def test_questions_and_settings_that_are_none(photo):
    desk = page_of()

    def asked(question: str, *settings) -> str:
        (*_, told), *more = desk.ask(str(photo), question, *settings)
        assert not more
        return lines(told)

    good = (48, 0.1, 3, "hiprune")
    assert asked("  ", *good).startswith("question: empty; expected a question")
    assert asked("x" * 1001, *good).startswith("question: 1001 characters; expected at most 1000")
    assert "stands for a picture; expected words" in asked("<image> or what?", *good).replace(
        "&lt;", "<"
    )
    assert asked(QUESTION, 500, 0.1, 3, "hiprune").startswith("retention=500: expected 1 to 144")
    assert asked(QUESTION, 48, 0.1, 9, "hiprune").startswith("object_layer=9: expected 1 to 8")
    told = desk.redraw(str(photo), "", 500, 0.1, 3, "hiprune")[-1]
    assert lines(told).startswith("retention=500: expected 1 to 144")
    assert desk.redraw(str(photo), "", 48, 0.1, 9, "hiprune")[-1] != ""


def test_what_is_no_error_of_ours_is_logged_and_told(photo, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("out of <memory>\nand more")

    monkeypatch.setattr(asking, "ask", fail)
    ((*_, told),) = page_of().ask(str(photo), QUESTION, 48, 0.1, 3, "hiprune")
    assert lines(told) == "RuntimeError: out of &lt;memory&gt; and more"
    assert "RuntimeError" in caplog.text


def test_users_at_once_get_their_own(photo):
    """Settings, pictures and questions of each; nobody sees another's model patched."""
    desk, scenes = loaded(), page_of().scenes
    users = [
        (scenes[0].path, scenes[0].question, Settings(144, 0.1, 3)),
        (scenes[1].path, scenes[1].question, Settings(9, 0.8, 5)),
        (photo, QUESTION, Settings(30, 0.5, 2, "cls")),
    ]

    def run(path, question, settings):
        seen = asking.see(desk, path)
        asked = asking.ask(desk, seen, question, settings)
        chosen = asking.choose(desk, seen, settings)
        texts = asked.unpruned.text, asked.pruned.text, asked.pruned.visual
        return texts, asked.selection.indices.tolist(), chosen.indices.tolist()

    alone, together = [run(*user) for user in users], [None] * 6
    start = threading.Barrier(6)

    def go(number: int) -> None:
        start.wait()
        together[number] = run(*users[number % 3])

    threads = [threading.Thread(target=go, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone * 2
    assert len({str(each) for each in alone}) == 3
    assert "_hiprune" not in vars(desk.model) and not desk.busy


def test_one_who_waits_is_told_so(photo):
    desk = page_of()
    with desk.loaded.turn():
        answers = desk.ask(str(photo), QUESTION, 48, 0.1, 3, "hiprune")
        *_, told = next(answers)
        assert "Another question is being answered; yours is next." in told
    *_, told = next(answers)
    assert told == ""


def test_what_a_model_says_is_text():
    answer = asking.Answer("<b>&", 0.5, 1, 3, 9)
    assert "&lt;b&gt;&amp;" in page._answer("Pruned", answer)
    assert "first token 500.0 ms<" in page._answer("Pruned", answer)


def test_examples_are_drawn_once():
    first = drawn.examples("llava")
    before = [scene.path.stat().st_mtime_ns for scene in first]
    assert drawn.examples("llava") == first and len(first) == 6
    assert [scene.path.stat().st_mtime_ns for scene in first] == before
    assert {Image.open(scene.path).size for scene in first} == {(168, 168)}
    assert {Image.open(scene.path).size for scene in drawn.examples("internvl")} == {(336, 336)}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def served(tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        blocks, port = layout.build(loaded()), free_port()
        try:
            yield layout.launch(blocks, port), port
        finally:
            blocks.close(verbose=False)


def test_the_page_asked_by_gradios_client(photo, tmp_path):
    from gradio_client import Client, handle_file

    with served(tmp_path) as (address, port):
        assert address == f"http://127.0.0.1:{port}/"
        # Another address of this very machine: a server of all its addresses would answer.
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", port), timeout=2)
        client = Client(address, verbose=False)
        path = handle_file(str(photo))
        found = client.predict(path, QUESTION, 30, 0.5, 2, "hiprune", api_name="/ask")
        seen = asking.see(loaded(), photo)
        expected = asking.ask(loaded(), seen, QUESTION, Settings(30, 0.5, 2))
        assert f'<p class="text">{expected.unpruned.text}</p>' in found[0]
        assert f'<p class="text">{expected.pruned.text}</p>' in found[1]
        assert "Pruned: hiprune, N&#x27; = 30, alpha = 0.5, l = 2" in found[1]
        assert "144 → 30" in found[3] and found[4] == ""
        shown = drawn.kept(seen, expected.selection).convert("RGB")
        with Image.open(found[2]) as picture:
            assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(shown))
        # A file that Gradio itself could not open.
        (tmp_path / "text.png").write_text("not a picture at all")
        path = handle_file(str(tmp_path / "text.png"))
        notice = client.predict(path, QUESTION, 30, 0.5, 2, "hiprune", api_name="/ask")[4]
        assert "text.png" in lines(notice)
        import httpx

        answer = httpx.get(address, trust_env=False)
        assert answer.headers["content-security-policy"] == layout.POLICY
        assert "fonts.googleapis" not in answer.text
        with pytest.raises(HiPruneError, match=f"PORT={port}: taken; expected a free port"):
            layout.launch(layout.build(loaded()), port)


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        ([], {}, "CKPT='': expected a checkpoint, or --tiny"),
        (["--small"], {}, "unknown argument '--small'; expected --tiny or nothing"),
        (["--tiny"], {"CKPT": "Qwen/x"}, "CKPT='Qwen/x' beside --tiny: expected one of the two"),
        (["--tiny"], {"PORT": "web"}, "PORT='web': expected a number from 1 to 65535"),
        (["--tiny"], {"PORT": "65536"}, "PORT='65536': expected a number"),
        ([], {"CKPT": "no/such/folder"}, "CKPT=no/such/folder: "),
        (["--tiny"], {"HIPRUNE_ALPHA": "2"}, "HIPRUNE_ALPHA='2': expected a number from 0 to 1"),
        (["--tiny"], {"DEVICE": "nowhere"}, "CKPT=tiny on nowhere: "),
    ],
)
def test_what_it_cannot_begin_with(arguments, environ, expected, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert program.main(arguments, environ) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"demo: {expected}") and told.count("\n") == 1


def test_it_ends_quietly(capsys, monkeypatch):
    """Ctrl-C: no traceback, the port free again, nothing left of what users uploaded."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    folders, port = [], free_port()

    def interrupted() -> None:
        folders.append(Path(os.environ["GRADIO_TEMP_DIR"]))
        assert folders[0].is_dir()
        socket.create_connection(("127.0.0.1", port)).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "_until_it_ends", interrupted)
    assert program.main(["--tiny"], {"PORT": str(port)}) == 0
    assert set(program.SMALL) == {*ALIASES, *TINY}
    out, err = capsys.readouterr()
    assert out.endswith(f"demo: http://127.0.0.1:{port}/ shows tiny (Ctrl-C ends it)\n")
    assert err == "" and not folders[0].exists()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2)
