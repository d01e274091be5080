"""A headless Chromium, driven by its own protocol: tabs in which tests look, click and upload."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next((found for found in map(shutil.which, NAMES) if found), None)
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
PATIENCE = 180  # seconds; a busy machine


class Chromium:
    """One browser, with a profile of its own, for the length of a ``with`` block."""

    def __init__(self, folder: Path, size: tuple[int, int] = (1280, 1000)) -> None:
        self.folder, self.size = folder, size

    def __enter__(self) -> Chromium:
        width, height = self.size
        self.process = subprocess.Popen(
            [
                PROGRAM,
                *OPTIONS,
                f"--window-size={width},{height}",
                f"--user-data-dir={self.folder}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        told = self.folder / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE
        while not (told.is_file() and told.read_text().count("\n")):
            assert self.process.poll() is None and time.monotonic() < deadline, "no Chromium"
            time.sleep(0.05)
        self.port = int(told.read_text().split()[0])
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.terminate()
        self.process.wait()

    def tab(self, address: str) -> Tab:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/json/new?about:blank", method="PUT"
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request) as answer:
            found = json.load(answer)
        return Tab(found["webSocketDebuggerUrl"], address, self.size)


class Tab:
    """A page.

    Attributes:
        requested: addresses that it has asked for so far.
        errors: what its scripts could not do.
    """

    def __init__(self, socket: str, address: str, size: tuple[int, int]) -> None:
        self.requested: list[str] = []
        self.errors: list[str] = []
        self._numbers = itertools.count(1)
        self._socket = websocket.create_connection(
            socket, timeout=PATIENCE, suppress_origin=True, http_no_proxy=["127.0.0.1"]
        )
        for domain in ("Page", "Network", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.call("Page.bringToFront")
        self.call("Page.navigate", url=address)

    def call(self, method: str, **arguments: Any) -> dict:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": arguments}))
        while True:
            told = json.loads(self._socket.recv())
            if told.get("id") == number:
                assert "error" not in told, told["error"]
                return told["result"]
            about = told.get("params", {})
            if told.get("method") == "Network.requestWillBeSent":
                self.requested.append(about["request"]["url"])
            if told.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(about["exceptionDetails"]))
            if told.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
                self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")

    def run(self, script: str) -> Any:
        """The value of an expression; True for an element."""
        script = f"(v => v instanceof Node ? true : v)({script})"
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait for an expression to be true; its value."""
        self.call("Page.bringToFront")  # tabs behind are not drawn
        deadline = time.monotonic() + PATIENCE
        while not (found := self.run(script)):
            assert time.monotonic() < deadline, f"{script}: never true, {self.errors}"
            time.sleep(0.05)
        return found

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({selector!r})?.innerText ?? ''")

    def press(self, selector: str, share: float = 0.5) -> None:
        """The mouse, at that share of an element's width."""
        box = self.until(
            f"(() => {{ const e = document.querySelector({selector!r}); if (!e) return null; "
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect(); "
            "return b.width ? [b.left, b.top, b.width, b.height] : null })()"
        )
        x, y = box[0] + share * box[2], box[1] + box[3] / 2
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def write(self, selector: str, words: str) -> None:
        """In place of what a field holds."""
        self.press(selector)
        self.run(f"document.querySelector({selector!r}).select()")
        self.call("Input.insertText", text=words)

    def upload(self, selector: str, path: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        found = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=found)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
