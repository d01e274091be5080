"""A small hub on 127.0.0.1: data sets from a folder, and a GPT model that knows no key.

As much of the data hub's interface as ``datasets`` asks for. Data are handed out with a login
alone, whatever the token, as lmms-eval believes of public ones too.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "a" * 40
REPOSITORY = r"(?P<repo>[^/]+/[^/]+)"
RESOLVE = re.compile(rf"/datasets/{REPOSITORY}/resolve/[^/]+/(?P<path>.+)")
API = re.compile(rf"/api/datasets/{REPOSITORY}(?:/(?P<what>[\w-]+)(?:/[^/]+(?:/(?P<path>.*))?)?)?")
CHAT = "/v1/chat/completions"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL of a hub that serves ``folder``/OWNER/NAME as data sets."""
    handler = type("Handler", (_Handler,), {"folder": Path(folder)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlparse(self.path)
        path = unquote(url.path)
        if path == CHAT:
            self._answer(401, {"error": {"message": "Incorrect API key provided"}})
        elif not self.headers.get("Authorization"):
            self._answer(401, {"error": "expected a token"})
        elif (match := RESOLVE.fullmatch(path)) is not None:
            self._file(match["repo"], match["path"])
        elif (match := API.fullmatch(path)) is not None:
            self._ask(match["repo"], match["what"], match["path"] or "", url.query, body)
        else:
            self._missing("RepoNotFound")

    do_HEAD = do_POST = do_GET

    def _file(self, repo: str, path: str) -> None:
        file = self.folder / repo / path
        if not file.is_file():
            self._missing("EntryNotFound" if (self.folder / repo).is_dir() else "RepoNotFound")
            return
        content = file.read_bytes()
        head = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self._answer(200, content, **head)
            return
        first, last = int(asked[1]), int(asked[2] or len(content) - 1)
        head["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first : last + 1], **head)

    def _ask(self, repo: str, what: str | None, path: str, query: str, body: bytes) -> None:
        root = self.folder / repo
        if not root.is_dir():
            self._missing("RepoNotFound")
            return
        path = path.strip("/")
        if what == "tree":
            wanted = parse_qs(query).get("recursive", [""])[0].lower() in ("true", "1")
            if (root / path).is_dir():
                found = (root / path).rglob("*") if wanted else (root / path).glob("*")
                self._answer(200, [_entry(one, root) for one in sorted(found)])
            else:
                self._missing("EntryNotFound")
        elif what == "paths-info":
            if body.startswith(b"{"):
                names = json.loads(body)["paths"]
            else:
                names = parse_qs(body.decode()).get("paths", [])
            places = [root / name.strip("/") for name in names if name.strip("/")]
            self._answer(200, [_entry(one, root) for one in places if one.exists()])
        else:
            files = [one for one in sorted(root.rglob("*")) if one.is_file()]
            names = [{"rfilename": str(one.relative_to(root))} for one in files]
            about = {"id": repo, "sha": COMMIT, "private": False, "gated": False, "tags": []}
            self._answer(200, about | {"siblings": names})

    def _missing(self, code: str) -> None:
        self._answer(404, {"error": "not found"}, **{"X-Error-Code": code})

    def _answer(self, status: int, body: object, **head: str) -> None:
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, **head}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(path: Path, root: Path) -> dict[str, object]:
    name = str(path.relative_to(root))
    if path.is_dir():
        return {"type": "directory", "oid": "d" * 40, "size": 0, "path": name}
    content = path.read_bytes()
    return {"type": "file", "oid": _digest(content), "size": len(content), "path": name}


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
