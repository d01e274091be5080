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

from scripts.benchmarks import QWEN_TINY, SMALL_ENGINE
from scripts.serving.bench import TINY
from scripts.serving.server import MODEL, Server
from scripts.tiny.scenes import make_scene

LIMIT = ("--limit-mm-per-prompt", '{"image": 2}')
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    arguments = [*TINY, *LIMIT]
    settings = {"retention": 0.334}
    with Server(
        "pruned", str(QWEN_TINY.checkpoint), settings, arguments, SMALL_ENGINE, log
    ) as found:
        found.wait()
        yield found


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def scene():
    """With one star, which is orange; 144 tokens, of which 48 are kept."""
    return png(Image.fromarray(make_scene(5, 21, 168).image).resize((336, 336)))


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


RIGHT = (200, ("Orange", 64))
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
def test_a_picture_that_cannot_be_is_told_and_the_next_request_is_right(server, fault):
    files, expected, told = FAULTS[fault]
    status, message = ask(server, body(*files()))
    assert status == expected and told in message, message
    assert ask(server, body(scene())) == RIGHT


def test_a_large_picture_has_as_many_tokens_as_the_processor_lets_it(server):
    """1,254 tokens at most 1,003,520 pixels: 418 of them stay, and the prompt fits."""
    status, (_, tokens) = ask(server, body(png(Image.new("RGB", (3000, 2000), "red"))))
    assert status == 200 and 400 < tokens < 450
    assert ask(server, body(scene())) == RIGHT


def test_a_client_that_goes_away_is_forgotten(server):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    data = body(scene(), max_tokens=1500, ignore_eos=True, stream=True)
    connection.request("POST", PATH, data, {"Content-Type": "application/json"})
    assert connection.getresponse().read(20)  # it has begun to answer
    assert server.metrics()["num_requests_running"] == 1
    before = server.metrics()["generation_tokens_total"]
    connection.sock.close()
    connection.close()
    end = time.monotonic() + 60
    while server.metrics()["num_requests_running"] and time.monotonic() < end:
        time.sleep(0.1)
    assert server.metrics()["num_requests_running"] == 0
    assert server.metrics()["generation_tokens_total"] - before < 1400  # it was not decoded out
    assert ask(server, body(scene())) == RIGHT


def test_an_engine_that_is_killed_ends_the_server(server):
    """As vLLM's own does: requests fail, and the server ends, for who runs it to start it anew."""
    names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in server.engine_processes()}
    (engine,) = (pid for pid, name in names.items() if "EngineCore" in name)
    os.kill(engine, signal.SIGKILL)
    with contextlib.suppress(OSError):  # it may be gone already
        status, _ = ask(server, body(scene()))
        assert status >= 500
    assert server.process.wait(60) is not None
