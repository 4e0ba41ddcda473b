# SPDX-License-Identifier: Apache-2.0
"""Image files of every accepted kind, and many that must be refused."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from ascend_dsv4.errors import RequestError, UnsupportedError
from ascend_dsv4.vision.decode import ALPHA_BACKGROUND, ImageLimits, decode_image, to_rgb


def picture(width: int = 40, height: int = 24) -> Image.Image:
    """Smooth, so that lossy formats keep it, and different in every corner."""
    x, y = np.meshgrid(np.linspace(0, 250, width), np.linspace(0, 250, height))
    return Image.fromarray(np.stack([x, y, 250 - x], axis=-1).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    room = io.BytesIO()
    image.save(room, kind, **options)
    return room.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG file put together by hand; `rows` are raw, each with its filter byte."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


class TestAccepted:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "JPEG"])
    def test_formats(self, kind: str) -> None:
        options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
        found = decode_image(saved(picture(), kind, **options))
        assert (found.mode, found.size) == ("RGB", (40, 24))
        error = np.abs(np.asarray(found, dtype=int) - np.asarray(picture(), dtype=int)).max()
        assert error <= {"PNG": 0, "BMP": 0, "WEBP": 0, "JPEG": 4, "GIF": 40}[kind]

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_exif_orientation(self, kind: str, orientation: int) -> None:
        """The file holds the picture turned away; by EXIF's table, its row 0 and column 0 are these sides of the picture."""
        sides = {1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left", 5: "left top", 6: "right top",
                 7: "right bottom", 8: "left bottom"}  # fmt: skip
        row0, column0 = sides[orientation].split()
        upright = np.asarray(picture())
        stored = upright.transpose(1, 0, 2) if row0 in ("left", "right") else upright
        stored = stored[::-1] if row0 in ("bottom", "right") else stored
        stored = stored[:, ::-1] if column0 in ("bottom", "right") else stored
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif.tobytes(), quality=95)
        found = decode_image(data)
        assert found.size == (40, 24)
        assert np.abs(np.asarray(found, dtype=int) - upright).mean() < 4

    def test_unknown_orientation(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 9
        assert decode_image(saved(picture(), "PNG", exif=exif.tobytes())).tobytes() == picture().tobytes()

    def test_alpha_shows_white(self) -> None:
        image = Image.new("RGBA", (3, 1), (200, 0, 100, 255))
        image.putpixel((1, 0), (200, 0, 100, 0))
        image.putpixel((2, 0), (200, 0, 100, 51))
        for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
            pixels = np.asarray(decode_image(saved(image, kind, **options)), dtype=int)[0]
            assert pixels[:2].tolist() == [[200, 0, 100], [255, 255, 255]]
            assert np.abs(pixels[2] - [244, 204, 224]).max() <= 1  # a fifth of the colour on four fifths of white

    def test_transparency_of_palettes_and_keys(self) -> None:
        palette = Image.new("P", (2, 1))
        palette.putpalette([10, 20, 30, 40, 50, 60])
        palette.putpixel((1, 0), 1)
        assert pixels_of(saved(palette, "PNG")) == [[10, 20, 30], [40, 50, 60]]
        assert pixels_of(saved(palette, "PNG", transparency=1)) == [[10, 20, 30], [255, 255, 255]]
        assert pixels_of(saved(palette, "GIF", transparency=0)) == [[255, 255, 255], [40, 50, 60]]
        colour = Image.new("RGB", (2, 1), (1, 2, 3))
        colour.putpixel((1, 0), (9, 8, 7))
        assert pixels_of(saved(colour, "PNG", transparency=(1, 2, 3))) == [[255, 255, 255], [9, 8, 7]]

    def test_grey_alpha_and_bilevel(self) -> None:
        grey = Image.new("LA", (2, 1), (70, 255))
        grey.putpixel((1, 0), (70, 0))
        assert pixels_of(saved(grey, "PNG")) == [[70] * 3, [255] * 3]
        bits = Image.new("1", (2, 1))
        bits.putpixel((1, 0), 1)
        assert pixels_of(saved(bits, "PNG")) == [[0] * 3, [255] * 3]

    def test_16_bit_samples_keep_their_upper_half(self) -> None:
        """Not clipped, which would make almost every picture white; grey, grey with a transparent level, and colour."""
        row = b"\0" + struct.pack(">4H", 0, 0x12FF, 0x8000, 0xFFFF)
        assert pixels_of(png(4, 1, 16, 0, row)) == [[0] * 3, [0x12] * 3, [0x80] * 3, [0xFF] * 3]
        key = png_chunk(b"tRNS", struct.pack(">H", 0x12FF))
        assert pixels_of(png(4, 1, 16, 0, row, key)) == [[0] * 3, [0xFF] * 3, [0x80] * 3, [0xFF] * 3]
        assert pixels_of(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0x12FF, 0x8000, 0xFFFF))) == [[0x12, 0x80, 0xFF]]

    def test_cmyk(self) -> None:
        image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
        red = np.asarray(decode_image(saved(image, "JPEG", quality=95)), dtype=int)[4, 4]
        assert red[0] > 240 and red[1] < 15 and red[2] < 15

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
    def test_animations_give_their_first_frame(self, kind: str) -> None:
        frames = [Image.new("RGB", (20, 20), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
        with Image.open(io.BytesIO(data)) as file:
            assert file.n_frames == 3
        assert decode_image(data).getpixel((10, 10)) == (255, 0, 0)

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"])
    def test_every_mode(self, mode: str) -> None:
        assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"

    def test_to_rgb_copies(self) -> None:
        image = picture()
        to_rgb(image).putpixel((0, 0), (9, 9, 9))
        assert image.getpixel((0, 0)) != (9, 9, 9)

    def test_background(self) -> None:
        assert ALPHA_BACKGROUND == (255, 255, 255)


def pixels_of(data: bytes) -> list[list[int]]:
    return np.asarray(decode_image(data)).reshape(-1, 3).tolist()


def webp_header(chunk: bytes, body: bytes) -> bytes:
    payload = b"WEBP" + chunk + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(payload)) + payload


def gif(width: int, height: int, frame: tuple[int, int, int, int]) -> bytes:
    """A GIF whose first frame is at frame[:2] with size frame[2:], without pixels."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + b"," + struct.pack("<HHHHB", *frame, 0) + b"\x02\x02\x4c\x01\0;"


def bmp_header(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 9, 0, 0, 54) + head + b"\0" * 9


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = bytearray(saved(picture(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def corrupt_png() -> bytes:
    data = bytearray(saved(picture(), "PNG"))
    data[data.index(b"IDAT") + 20] ^= 0xFF
    return bytes(data)


WHOLE = {kind: saved(picture(200, 120), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP")}
BOMB_ROWS = zlib.compress(b"\0" * 2_000_000)

TOO_MANY = "(more pixels than Pillow opens|pixels), expected at most 64,000,000"

REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot be read"),
    "one byte": (b"\x89", "cannot be read"),
    "text": (b"hello, this is no image", "unknown format"),
    "html": (b"<html><body>404</body></html>", "unknown format"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "unknown format"),
    "zeros": (b"\0" * 1000, "unknown format"),
    "tiff": (saved(picture(), "TIFF"), "unknown format"),
    "ppm": (saved(picture(), "PPM"), "unknown format"),
    "ico": (saved(picture(), "ICO"), "unknown format"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "unknown format"),
    "pdf": (b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n", "unknown format"),
    **{f"half a {kind}": (data[: len(data) // 2], "cannot be read") for kind, data in WHOLE.items()},
    **{f"the first 20 bytes of a {kind}": (data[:20], "cannot be read") for kind, data in WHOLE.items()},
    "signature alone": (WHOLE["PNG"][:8], "cannot be read"),
    "corrupt png": (corrupt_png(), "cannot be read"),
    "png without data": (png(4, 4, 8, 2, b""), "cannot be read"),
    "png of no width": (png(0, 4, 8, 2, b""), "cannot be read|at least 1x1"),
    "png of unknown colour": (png(4, 4, 8, 5, b"\0" * 99), "cannot be read"),
    "png bomb": (png(50_000, 50_000, 8, 2, BOMB_ROWS), TOO_MANY),
    "png above the limit": (png(9000, 9000, 8, 2, b""), "9000x9000 pixels, expected at most 64,000,000"),
    "gif bomb": (gif(65535, 65535, (0, 0, 1, 1)), TOO_MANY),
    "gif with a frame outside": (gif(10, 10, (0, 0, 60000, 60000)), TOO_MANY),
    "bmp bomb": (bmp_header(30_000, 30_000), TOO_MANY),
    "bmp of negative width": (bmp_header(-5, 5), TOO_MANY),
    "bmp of no height": (bmp_header(5, 0), "cannot be read|at least 1x1"),
    "jpeg bomb": (jpeg_of_size(65_000, 65_000), TOO_MANY),
    "jpeg above the limit": (jpeg_of_size(9000, 9000), "9000x9000 pixels, expected at most 64,000,000"),
    "webp bomb VP8X": (webp_header(b"VP8X", b"\0\0\0\0" + b"\xff\xff\x00" * 2), "65536x65536 pixels, expected at most"),
    "webp bomb VP8L": (webp_header(b"VP8L", b"\x2f\xff\xff\xff\x0f" + b"\0" * 9), "16384x16384 pixels, expected at most"),
    "webp bomb VP8": (
        webp_header(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383)),
        "16383x16383 pixels, expected at most",
    ),
    "webp of no chunk": (webp_header(b"JUNK", b"\0" * 40), "cannot be read"),
    "a thread": (saved(Image.new("RGB", (1, 500)), "PNG"), "1x500 pixels, expected sides within a factor of 200"),
    "a wire": (saved(Image.new("RGB", (4001, 20)), "PNG"), "4001x20 pixels, expected sides within a factor of 200"),
    "too many bytes": (saved(picture(), "PNG") + b"\0" * 20_000_000, "expected at most 20,000,000"),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """A request error that names the image and what to do, whatever is wrong; warnings as they are outside of tests."""
    data, message = REFUSED[name]
    with pytest.raises(RequestError, match=message) as caught:
        decode_image(data)
    text = str(caught.value)
    assert text.startswith("image: got ") and "expected" in text and "because" in text
    assert text.endswith(".") and " 0x" not in text and len(text) < 400


@pytest.mark.parametrize("name", [name for name in REFUSED if "bomb" in name or "limit" in name or "outside" in name])
def test_refused_where_warnings_are_errors(name: str) -> None:
    with pytest.raises(RequestError, match="expected at most"):
        decode_image(REFUSED[name][0])


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", WHOLE)
def test_any_cut_and_any_flip(kind: str) -> None:
    """Cut anywhere or with a byte changed, a file is read or refused; no other error comes out."""
    data, rng = WHOLE[kind], np.random.default_rng(2)
    for _ in range(150):
        spoiled = bytearray(data[: rng.integers(1, len(data) + 1)])
        for _ in range(rng.integers(0, 4)):
            spoiled[rng.integers(len(spoiled) if rng.random() < 0.5 else min(60, len(spoiled)))] = rng.integers(256)
        try:
            assert decode_image(bytes(spoiled), ImageLimits(max_pixels=200_000)).mode == "RGB"
        except RequestError as error:
            assert str(error).startswith("image: got ")


@pytest.mark.filterwarnings("default")
def test_limits_come_before_memory() -> None:
    """Refusing a bomb takes kilobytes."""
    bombs = [data for name, (data, _) in REFUSED.items() if "bomb" in name or "above the limit" in name]
    assert len(bombs) >= 8
    decode_image(WHOLE["PNG"])  # imports of readers do not count
    tracemalloc.start()
    for data in bombs:
        with pytest.raises(RequestError):
            decode_image(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_limits_are_inclusive() -> None:
    data = saved(picture(40, 20), "PNG")
    exact = ImageLimits(max_bytes=len(data), max_pixels=800, max_aspect_ratio=2)
    assert decode_image(data, exact).size == (40, 20)
    changes: list[Callable[[], ImageLimits]] = [
        lambda: ImageLimits(max_bytes=len(data) - 1),
        lambda: ImageLimits(max_pixels=799),
        lambda: ImageLimits(max_aspect_ratio=1.99),
    ]
    for change in changes:
        with pytest.raises(RequestError):
            decode_image(data, change())


def test_lenient_pillow_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UnsupportedError, match="LOAD_TRUNCATED_IMAGES is True"):
        decode_image(WHOLE["PNG"])
