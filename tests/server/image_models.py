# SPDX-License-Identifier: Apache-2.0
"""A V4.1 checkpoint that holds conversations, and image files good and bad."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

IMAGE_ID = 511
SPELLED = "<｜deepseek_image｜>"


def v41_chat_model(golden: Path, folder: Path) -> Path:
    """The golden checkpoint; `<｜System｜>`, which its vocabulary lacks, replaces a token that conversations never use."""
    folder.mkdir()
    for file in golden.iterdir():
        if file.name == "tokenizer.json":
            text = file.read_text(encoding="utf-8")
            assert "<｜read_url｜>" in text
            (folder / file.name).write_text(text.replace("<｜read_url｜>", "<｜System｜>"), encoding="utf-8")
        else:
            (folder / file.name).symlink_to(file)
    return folder


def picture(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    """Noise."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, data: bytes = b"", *extra: bytes) -> bytes:
    """A PNG file that claims this size."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def _webp(canvas: int) -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (canvas - 1).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


_GOOD = saved(picture(0))
_ZEROS = zlib.compress(bytes(120_000_000), 9)
UNREADABLE, TOO_LARGE = "cannot be read", "expected at most"
BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", UNREADABLE),
    "text": (lambda: b"this is no image", UNREADABLE),
    "html": (lambda: b"<!DOCTYPE html><html></html>", UNREADABLE),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', UNREADABLE),
    "pdf": (lambda: b"%PDF-1.7\n", UNREADABLE),
    "zip": (lambda: b"PK\x03\x04" + bytes(40), UNREADABLE),
    "tiff": (lambda: saved(picture(0), "TIFF"), UNREADABLE),
    "ppm": (lambda: saved(picture(0), "PPM"), UNREADABLE),
    "ico": (lambda: saved(picture(0), "ICO"), UNREADABLE),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNREADABLE),
    "png signature": (lambda: _GOOD[:8], UNREADABLE),
    "png header": (lambda: _GOOD[:33], UNREADABLE),
    "png cut off": (lambda: _GOOD[: len(_GOOD) // 2], UNREADABLE),
    "png damaged": (lambda: _GOOD[:200] + bytes(50) + _GOOD[250:], UNREADABLE),
    "png without data": (lambda: png(40, 40), UNREADABLE),
    "png of no size": (lambda: png(0, 40), "image"),
    "png bomb": (lambda: png(60_000, 60_000, _ZEROS), TOO_LARGE),
    "png bomb of text": (lambda: png(40, 40, b"", png_chunk(b"zTXt", b"k\0\0" + _ZEROS)), UNREADABLE),
    "png needle": (lambda: png(1, 9000, zlib.compress(bytes(4 * 9000))), "sides within a factor"),
    "jpeg cut off": (lambda: saved(picture(0), "JPEG")[:300], UNREADABLE),
    "jpeg of giant size": (lambda: saved(picture(0), "JPEG").replace(b"\0\x28\0\x3c\x03", b"\xff\xff\xff\xff\x03"), TOO_LARGE),
    "gif cut off": (lambda: saved(picture(0), "GIF")[:100], UNREADABLE),
    "gif of giant size": (lambda: b"GIF89a" + b"\xff\xff\xff\xff" + saved(picture(0), "GIF")[10:], TOO_LARGE),
    "webp of giant size": (lambda: _webp(16_383), TOO_LARGE),
    "webp header": (lambda: saved(picture(0), "WEBP")[:20], UNREADABLE),
    "bmp cut off": (lambda: saved(picture(0), "BMP")[:80], UNREADABLE),
    "bmp of giant size": (
        lambda: (lambda data: data[:18] + struct.pack("<ii", 60_000, 60_000) + data[26:])(saved(picture(0), "BMP")), TOO_LARGE,
    ),
    "too many bytes": (lambda: saved(picture(0, 500, 500)), TOO_LARGE),
}  # fmt: skip
"""Files that no server should take, and what it says about them; more than 400 KB are too many."""
BAD_URLS: dict[str, tuple[str, str]] = {
    "no base64": ("data:image/png;base64,@@@@", "Invalid base64"),
    "no padding": ("data:image/png;base64,QUJDR", "Invalid base64"),
    "line breaks": ("data:image/png;base64,QUJD\nQUJD", "not base64"),
    "percent signs": ("data:image/png,%89PNG", "names no image"),
    "other type": ("data:image/svg+xml;base64,QUJD", "one of the following formats"),
    "no type": ("data:;base64,QUJD", "names no image"),
    "text": ("data:text/plain;base64,QUJD", "names no image"),
    "nothing": ("", "names no image"),
    "file": ("file:///etc/passwd", "names no image"),
    "ftp": ("ftp://example.org/x.png", "names no image"),
    "path": ("/etc/passwd", "names no image"),
}
