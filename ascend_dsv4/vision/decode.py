# SPDX-License-Identifier: Apache-2.0
"""Bytes from anybody to an RGB image, within bounds that are checked before anything is decoded."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ascend_dsv4.errors import RequestError, UnsupportedError

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
ALPHA_BACKGROUND: Final = (255, 255, 255)
"""What shows through transparent pixels. UNVERIFIED: the released preprocessing takes RGB and does not say how it is made."""

_ORIENTATION_TAG: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation → what brings the image upright."""

_DAMAGE: Final = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, NotImplementedError,
    struct.error, zlib.error, Image.DecompressionBombError, Warning,
)  # fmt: skip
"""What Pillow raises on damaged files, depending on where the damage is; `Warning` where the process turns them into errors."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds of one image. Decoding takes up to about 16 bytes of memory per pixel."""

    max_bytes: int = 20_000_000
    max_pixels: int = 64_000_000
    max_aspect_ratio: float = 200.0
    """Longer side over shorter side."""


DEFAULT_LIMITS: Final = ImageLimits()


ImageInput = Image.Image | bytes | str | Path
"""An image that is open, the bytes of a file, or a path."""


def open_image(image: ImageInput, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """The image behind any of them. raises RequestError as `decode_image`, and for a file that cannot be read."""
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, bytes | str | Path):
        raise RequestError(
            f"image of type {type(image).__name__}: expected bytes, a path or an open PIL image, because nothing else holds an "
            "image file. Send one of them."
        )
    if isinstance(image, str | Path):
        try:
            with open(image, "rb") as file:
                image = file.read(limits.max_bytes + 1)
        except OSError as error:
            raise RequestError(
                f"image {str(image)!r}: cannot be read ({error.strerror}), expected an image file. Check the path."
            ) from error
    return decode_image(image, limits)


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """The first frame of a PNG, JPEG, WebP, GIF or BMP file, upright, in mode RGB.

    EXIF orientation is applied, transparency is composited on `ALPHA_BACKGROUND`, and 16-bit samples keep their upper half.
    raises  RequestError for another format, damaged or truncated data, and anything above `limits`
    """
    if len(data) > limits.max_bytes:
        raise RequestError(
            f"image: got {len(data):,} bytes, expected at most {limits.max_bytes:,}, because of this server's limit. "
            "Send a smaller file."
        )
    webp_size = _webp_size(data)
    if webp_size is not None:
        _check_size(webp_size, limits)  # Pillow's reader makes room for the canvas as soon as it opens the file
    with _refusing("header", limits):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    with image:
        _check_size(image.size, limits)
        with _refusing("pixels", limits):
            image.load()
            # Loading may change the size only in files that were made to deceive.
            _check_size(image.size, limits)
            turn = _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1))
            rgb = to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy in mode RGB of an image in any mode, composited on `ALPHA_BACKGROUND` where it is transparent."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_wide(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    rgb = Image.new("RGB", image.size, ALPHA_BACKGROUND)
    rgb.paste(layer, mask=layer.getchannel("A"))
    return rgb


def _from_wide(image: Image.Image) -> Image.Image:
    """16-bit grey (modes I;16…, and I or F holding such values) by its upper byte, as Pillow reads 16-bit colour."""
    levels = np.asarray(image)
    grey = (np.clip(levels, 0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    if isinstance(transparent, int):
        colour[levels == transparent] = ALPHA_BACKGROUND
    return Image.fromarray(colour)


@contextmanager
def _refusing(part: str, limits: ImageLimits) -> Iterator[None]:
    """Whatever Pillow makes of damaged data is one refusal."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UnsupportedError(
            "image: PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, expected False, because images that are cut off would be "
            "taken for whole ones. Do not set it in a process that serves requests."
        )
    try:
        yield
    except RequestError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RequestError(
            f"image: got more pixels than Pillow opens, expected at most {limits.max_pixels:,}, because of this server's "
            "limit. Send a smaller image."
        ) from error
    except _DAMAGE as error:
        raise RequestError(
            f"image: got data whose {part} cannot be read ({_first_line(error)}), expected a whole PNG, JPEG, WebP, GIF or BMP "
            "file, because others are not accepted. Save the image again and send all of it."
        ) from error


def _first_line(error: BaseException) -> str:
    """Short and without addresses of objects, which Pillow puts into some messages."""
    text = str(error).partition("\n")[0]
    return "unknown format" if isinstance(error, UnidentifiedImageError) else (text or type(error).__name__)[:100]


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        expected, because = "at least 1x1", "there is nothing to see"
    elif width * height > limits.max_pixels:
        expected, because = f"at most {limits.max_pixels:,} in all", "of this server's limit"
    elif max(size) > limits.max_aspect_ratio * min(size):
        expected, because = f"sides within a factor of {limits.max_aspect_ratio:g}", "little would be left of the shorter one"
    else:
        return
    raise RequestError(f"image: got {width}x{height} pixels, expected {expected}, because {because}. Resize or crop the image.")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height by the header of a WebP file (RFC 9649); None for other data, or a header that is cut short."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    chunk, body = data[12:16], data[20:30]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return None
