"""What is no picture is told in a line."""

from __future__ import annotations

import builtins
import os
import struct
import zlib

import pytest

pytest.importorskip("PIL")

from PIL import Image

from hiprune import HiPruneError
from hiprune.images import open_image


def png(width: int, height: int) -> bytes:
    """A PNG file whose header promises so many pixels, without any."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.fixture
def strict(monkeypatch):
    """lmms-eval's tasks let truncated pictures pass in the process that imports them."""
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", False)


def refusal(path) -> str:
    with pytest.raises(HiPruneError) as caught:
        open_image(path)
    message = str(caught.value)
    assert message.startswith(f"IMAGE {path}: ") and message.count("; expected ") == 1
    assert "\n" not in message
    return message.removeprefix(f"IMAGE {path}: ").partition("; expected ")[0]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"not a picture at all", "a text that begins with 'not a picture at all', no picture"),
        (POINTER.encode(), f"a text that begins with '{POINTER[:40]}', no picture"),
        ("ä".encode() * 50, f"a text that begins with '{'ä' * 32}', no picture"),
        (bytes(range(99)), r"of no format that Pillow reads (it begins with b'\x00\x01\x02"),
        (png(0, 7), ""),  # Pillow's versions differ in what they say
        (b"P6 0 5 255\n", ""),
        (png(3, 7), "cut off|broken"),
        (png(60000, 60000), "too large (Image size (3600000000 pixels) exceeds limit of"),
    ],
)
def test_contents_that_are_no_picture(content, reason, tmp_path, strict):
    (tmp_path / "x.png").write_bytes(content)
    found = refusal(tmp_path / "x.png")
    assert any(found.startswith(start) for start in reason.split("|")), found


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_a_file_that_was_cut_off(kind, tmp_path, strict):
    Image.effect_noise((64, 64), 90).save(tmp_path / f"x.{kind}")
    whole = (tmp_path / f"x.{kind}").read_bytes()
    (tmp_path / f"x.{kind}").write_bytes(whole[: len(whole) // 2])
    assert refusal(tmp_path / f"x.{kind}").startswith(("cut off (", "broken ("))


def test_places_that_hold_no_file(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "none.png") == "no such file"
    assert refusal(tmp_path / "file" / "x.png") == "no such file"
    assert refusal(tmp_path) == "a folder"
    assert refusal(tmp_path / "link") == "a link to nowhere, which is not there"
    assert refusal(tmp_path / "loop") == "a loop of links"
    assert refusal(tmp_path / "pipe") == "not readable (a pipe, a socket or a device)"
    assert refusal(tmp_path / ("x" * 300)).startswith("not readable ([Errno 36] File name too long")
    assert "null" in refusal(tmp_path / "x\0y")

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builtins, "open", forbidden)  # root may read everything
    assert refusal(tmp_path / "file") == "not readable (permission denied)"
