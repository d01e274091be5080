"""The server under faults: it answers or ends as vLLM's own does, and the next request is right."""

import base64
import contextlib
import io
import json
import os
import signal
import struct
import time
import urllib.error
import urllib.request
import zlib
from http.client import HTTPConnection
from pathlib import Path

import pytest
from PIL import Image

from scripts.benchmarks import ASSETS, QWEN_TINY, SMALL_ENGINE
from scripts.serving.bench import TINY
from scripts.serving.server import MODEL, Server

LIMIT = ("--limit-mm-per-prompt", '{"image": 2}')
PATH = "/v1/chat/completions"


SETTINGS = {"pruned": {"retention": 0.334}, "unpruned": None}


def start(name, folder):
    return Server(
        *(name, str(QWEN_TINY.checkpoint), SETTINGS[name], [*TINY, *LIMIT], SMALL_ENGINE),
        folder / f"{name}.txt",
    )


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """The pruned one, and vLLM as it is, which gets the same faults."""
    folder = tmp_path_factory.mktemp("servers")
    with start("pruned", folder) as pruned, start("unpruned", folder) as unpruned:
        for each in (pruned, unpruned):
            each.wait()
        yield pruned, unpruned


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def scene():
    """The README's picture, as large as those of the training: 144 tokens. Its star is orange."""
    return (ASSETS / "scene.png").read_bytes()


def body(*files, text="What color is the star?", **more):
    urls = [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in files]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content.append({"type": "text", "text": text})
    messages = [{"role": "user", "content": content}]
    found = {"model": MODEL, "temperature": 0, "max_tokens": 4, "messages": messages}
    return json.dumps(found | more).encode()


def ask(server, data):
    """Status; the answer, and tokens of its prompt, or what the error says."""
    request = urllib.request.Request(
        server.url + PATH, data, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]
    return 200, (found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens"])


def bomb(side):
    """A PNG that says it has side x side pixels, and holds none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [header, b"IDAT" + zlib.compress(b""), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in parts
    )


# Of 144 tokens 48 are kept.
RIGHT = {"pruned": (200, ("Orange", 64)), "unpruned": (200, ("Orange", 160))}
# Files, status and what is told: all of it vLLM's own.
FAULTS = {
    "no picture": (lambda: [b"hello"], 400, "cannot identify image file"),
    "cut off": (lambda: [scene()[:2000]], 400, "Failed to load image"),
    "no pixels": (lambda: [bomb(400)], 400, "Failed to load image"),
    "huge": (lambda: [bomb(20_000)], 500, "exceeds limit of 178956970 pixels"),
    "a line": (lambda: [png(Image.new("RGB", (6000, 20)))], 400, "Failed to apply Qwen2_5_VLProc"),
    "too many": (lambda: [scene()] * 3, 400, "At most 2 image"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_picture_that_cannot_be_is_told_and_the_next_request_is_right(servers, fault):
    files, expected, told = FAULTS[fault]
    for server in servers:
        status, message = ask(server, body(*files()))
        assert status == expected and told in message, (server.label, message)
        assert ask(server, body(scene())) == RIGHT[server.label]


def test_a_large_picture_has_as_many_tokens_as_the_processor_lets_it(servers):
    """1,254 tokens at most 1,003,520 pixels: 418 of them stay, and the prompt fits."""
    data = body(png(Image.new("RGB", (3000, 2000), "red")))
    (status, (_, pruned)), (other, (_, whole)) = (ask(server, data) for server in servers)
    assert status == other == 200 and 400 < pruned < 450 and 1200 < whole < 1300
    assert ask(servers[0], body(scene())) == RIGHT["pruned"]


@contextlib.contextmanager
def long_answer(server):
    """A connection on which an answer of 1500 tokens has begun."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    data = body(scene(), max_tokens=1500, ignore_eos=True, stream=True)
    connection.request("POST", PATH, data, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.read(20)
    with contextlib.closing(connection):
        yield answer, connection


def test_a_client_that_goes_away_is_forgotten(servers):
    for server in servers:
        with long_answer(server) as (_, connection):
            assert server.metrics()["num_requests_running"] == 1
            before = server.metrics()["generation_tokens_total"]
            connection.sock.close()
        end = time.monotonic() + 60
        while server.metrics()["num_requests_running"] and time.monotonic() < end:
            time.sleep(0.1)
        assert server.metrics()["num_requests_running"] == 0
        decoded = server.metrics()["generation_tokens_total"] - before
        assert decoded < 1400, server.label  # it was not decoded out
        assert ask(server, body(scene())) == RIGHT[server.label]


def test_an_engine_that_is_killed_ends_the_server_and_a_new_one_is_right(servers, tmp_path):
    """For who runs it to start it anew."""
    texts = ("What color is the star?", "What shape is orange?", "How many stars are there?")
    asked = [body(scene(), text=text) for text in texts]
    before = [ask(servers[0], data) for data in asked]
    ends = [killed(server) for server in servers]
    assert ends[0] == ends[1] and "error" in ends[0][0], ends
    with start("pruned", tmp_path) as anew:
        anew.wait()
        assert [ask(anew, data) for data in asked] == before


def killed(server):
    """Of a server whose engine is killed: the last of an answer that it was giving, its own end."""
    names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in server.engine_processes()}
    (engine,) = (pid for pid, name in names.items() if "EngineCore" in name)
    with long_answer(server) as (answer, _):
        os.kill(engine, signal.SIGKILL)
        *_, told, done = filter(None, answer.read().decode().splitlines())
    assert done == "data: [DONE]"
    with contextlib.suppress(OSError):  # it may be gone already
        status, _ = ask(server, body(scene()))
        assert status >= 500
    return told, server.process.wait(60)
