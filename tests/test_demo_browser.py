"""scripts/demo.sh's page in a real browser: upload, move a slider, ask, two tabs, no way out."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from forking_python import command, serving_here
from PIL import Image

if find_spec("gradio") is None:  # not imported: the page runs in a process of its own
    pytest.skip("no gradio here", allow_module_level=True)
chromium = pytest.importorskip("chromium")
if chromium.PROGRAM is None:
    pytest.skip("no Chromium here (Debian: apt-get install chromium)", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
# Where the pictures of the page go, to be looked at; none unless said.
SHOTS = os.environ.get("DEMO_SCREENSHOTS")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def server():
    """The program itself; (address, process)."""
    environment = {**os.environ, "PORT": str(free_port())}
    with serving_here(anew=("gradio", "gradio_client")) as place, subprocess.Popen(
        [*command(place), "-W", "ignore", "-m", "scripts.demo", "--tiny"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        address = ""
        for line in process.stdout:
            if "http://" in line:
                address = line.split()[1]
                break
        assert address, process.stderr.read()
        yield address, process
        process.terminate()  # where it has not ended already


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.Chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    noise = np.random.default_rng(0).uniform(0, 255, (6, 10, 3)).astype(np.uint8)
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(noise).resize((500, 300), Image.Resampling.BICUBIC).save(path)
    return path


def opened(browser, server):
    tab = browser.tab(server[0])
    tab.until(READY)
    return tab


KEPT = "document.querySelector('#kept img')?.src"
# All parts are there, and the pictures of the first example.
PARTS = (
    "#kept img", "#maps img", "#picture img", "#summary b", "#pruned .answer", "#scenes button",
    "#ask", "#question textarea", "#method input", "#budget input[type=number]",
    "#alpha input[type=range]", "#layer input[type=range]",
)  # fmt: skip
READY = f"{list(PARTS)}.every(part => document.querySelector(part))"


def shot(tab, name: str) -> None:
    if SHOTS:
        tab.screenshot(Path(SHOTS) / f"{name}.png")


def budget(tab) -> int:
    return int(tab.run("document.querySelector('#budget input[type=number]').value"))


def kept(tab) -> str:
    """What the page says of N and N'."""
    return tab.run("document.querySelector('#summary b').innerText")


def move(tab, slider: str, share: float) -> None:
    """Press a slider's track there, and wait until another picture is drawn."""
    before = tab.run(KEPT)
    tab.press(f"#{slider} input[type=range]", share)
    tab.until(f"{KEPT} !== {before!r}")


def ask(tab) -> tuple[str, str]:
    """Both answers, once they are others than before."""
    texts = "['unpruned', 'pruned'].map(i => document.querySelector(`#${i}`).innerText)"
    before = tab.run(f"{texts}.join()")
    tab.press("#ask")
    tab.until(f"{texts}.join() !== {before!r} && {texts}.every(t => t.includes('first token'))")
    return tuple(tab.run(texts))


def test_upload_move_ask(browser, server, photo):
    tab = opened(browser, server)
    assert kept(tab) == "144 → 48" and budget(tab) == 48
    shot(tab, "first")
    unpruned, pruned = ask(tab)
    assert "144 visual tokens" in unpruned and "48 visual tokens" in pruned
    assert "Pruned: hiprune, N' = 48, alpha = 0.1, l = 3" in pruned
    shot(tab, "asked")

    # A slider: another picture, other numbers, the same answers; nobody was asked again.
    move(tab, "budget", 0.1)
    assert kept(tab) == f"144 → {budget(tab)}" and budget(tab) < 30
    assert tab.text("#pruned") == pruned
    maps = tab.run("document.querySelector('#maps img').src")
    move(tab, "alpha", 0.9)
    assert tab.run("document.querySelector('#maps img').src") == maps
    move(tab, "layer", 0.9)
    tab.until(f"document.querySelector('#maps img').src !== {maps!r}")
    shot(tab, "moved")
    assert ask(tab)[1] != pruned

    # A picture of one's own: its answers are not there yet.
    before = tab.run(KEPT)
    tab.press("#picture button[aria-label='Remove Image']")
    tab.until("document.querySelector('#picture input[type=file]')")
    tab.upload("#picture input[type=file]", photo)
    tab.until(f"{KEPT} && {KEPT} !== {before!r}")
    assert "Ask to see it" in tab.text("#pruned")
    tab.write("#question textarea", "How many stars are there?")
    assert len(ask(tab)) == 2
    shot(tab, "uploaded")
    assert tab.errors == []


def test_a_bad_file_is_one_line(browser, server, tmp_path):
    (tmp_path / "text.png").write_text("not a picture at all")
    tab = opened(browser, server)
    tab.press("#picture button[aria-label='Remove Image']")
    tab.until("document.querySelector('#picture input[type=file]')")
    tab.upload("#picture input[type=file]", tmp_path / "text.png")
    told = tab.until("document.querySelector('#notice p')?.innerText")
    shot(tab, "bad")
    assert "text.png" in told and "\n" not in told and "Traceback" not in told
    # And on with an example, which has a question of its own.
    question = "document.querySelector('#question textarea').value"
    before = tab.run(question)
    tab.press("#scenes .gallery-item:nth-child(3) button")
    tab.until(f"!document.querySelector('#notice p') && {KEPT} && {question} !== {before!r}")
    assert "first token" in ask(tab)[1]


def test_two_tabs_at_once(browser, server):
    tabs = [opened(browser, server) for _ in range(2)]
    move(tabs[0], "budget", 0.05)
    move(tabs[1], "budget", 0.95)
    budgets = [budget(tab) for tab in tabs]
    assert budgets[0] < 30 and budgets[1] > 110
    for tab in tabs:
        tab.press("#ask")
    for tab, own in zip(tabs, budgets, strict=True):
        tab.until("document.querySelector('#pruned').innerText.includes('first token')")
        assert f"{own} visual tokens" in tab.text("#pruned")
        assert kept(tab) == f"144 → {own}"


def test_nothing_comes_from_elsewhere(browser, server):
    tab = opened(browser, server)
    ask(tab)
    hosts = {urlsplit(each).hostname for each in tab.requested if each.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"} and len(tab.requested) > 5


def test_ctrl_c_ends_it_quietly(server):
    """The last: with tabs that are open still."""
    _, process = server
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == ""
