# SPDX-License-Identifier: Apache-2.0
"""An image as the vision tower takes it: planned size, resized and padded pixels, flattened patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ascend_dsv4.config.vision_config import VisionConfig
from ascend_dsv4.errors import RequestError
from ascend_dsv4.vision.decode import to_rgb

PAD_COLOR = (127, 127, 127)
"""What surrounds an image whose aspect ratio is not that of its grid."""


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """How one image is cut up."""

    vit_h: int
    vit_w: int
    """Rows and columns of patches."""
    llm_h: int
    llm_w: int
    """Rows and columns of image tokens."""
    best_height: int
    best_width: int
    """Pixels of the resized and padded image."""

    @property
    def num_tokens(self) -> int:
        """Positions in the prompt: the image tokens, one newline per row, start and end."""
        return _num_tokens(self.llm_h, self.llm_w)


def _num_tokens(llm_h: int, llm_w: int) -> int:
    return llm_h * (llm_w + 1) + 2


def _grid(height: int, width: int, config: VisionConfig) -> ImageGrid:
    """The grid of an image whose sides are multiples of the patch size."""
    vit_h, vit_w = height // config.patch_size, width // config.patch_size
    ratio = config.downsample_ratio
    return ImageGrid(vit_h, vit_w, -(-vit_h // ratio), -(-vit_w // ratio), height, width)


def plan_grid(width: int, height: int, config: VisionConfig) -> ImageGrid:
    """The grid of an image of this many pixels (DeepSeek-V4.1 model definition, vision preprocessing).

    raises  RequestError for an image without pixels
    """
    if width < 1 or height < 1:
        raise RequestError(
            f"image: got {width}x{height} pixels, expected at least 1x1, because there is nothing to see. Send another image."
        )
    w: float = width
    h: float = height
    if config.max_wh_ratio is not None and w > h * config.max_wh_ratio:
        w = h * config.max_wh_ratio
    if 0 < w * h < config.min_pixels:
        scale = math.sqrt(config.min_pixels / (w * h))
        w, h = int(w * scale), int(h * scale)
    patch = config.patch_size
    grid = _grid(math.ceil(h / patch) * patch, math.ceil(w / patch) * patch, config)
    if grid.num_tokens > config.max_image_tokens:
        grid = _grid(*_largest_that_fits(w, h, config), config)
    assert grid.num_tokens <= config.max_image_tokens, f"planned {grid} for {width}x{height}"
    return grid


def _largest_that_fits(w: float, h: float, config: VisionConfig) -> tuple[int, int]:
    """Height and width of about this aspect ratio that need at most `max_image_tokens`."""
    patch, cell, room = config.patch_size, config.patch_size * config.downsample_ratio, config.max_image_tokens - 2
    aspect = h / w
    max_w = math.sqrt(room / aspect + 0.25) - 0.5  # the positive root of aspect · w · (w + 1) = room, in tokens
    max_h = max_w * aspect
    if max_w < 1:
        return room // 2 * cell, cell
    if max_h < 1:
        return cell, (room - 1) * cell
    scale = min(math.floor(max_w) * cell / w, math.floor(max_h) * cell / h)
    return math.floor(h * scale / patch) * patch, math.floor(w * scale / patch) * patch


def preprocess(image: Image.Image, config: VisionConfig) -> tuple[NDArray[np.float32], ImageGrid]:
    """Patches of an image and its grid.

    The image, by `to_rgb` if its mode is not RGB, is resized (bicubic) to fit its grid with its own aspect ratio and centred
    on grey; one that is wider than `max_wh_ratio` is stretched instead. Pixels map to (x / 255 - 0.5) / 0.5, rounded to
    bfloat16.
    returns  float32 [vit_h · vit_w, 3 · patch_size²] holding bfloat16 values: patches in reading order, each channel by
             channel in reading order; and the grid
    raises   RequestError for an image so narrow that nothing of it would be left
    """
    grid = plan_grid(image.width, image.height, config)
    image = image if image.mode == "RGB" else to_rgb(image)
    size = (grid.best_width, grid.best_height)
    if config.max_wh_ratio is not None and image.width > image.height * config.max_wh_ratio:
        fitted = image.resize(size, Image.Resampling.BICUBIC)
    elif min(round(image.width / image.height * size[1]), round(image.height / image.width * size[0])) < 1:
        raise RequestError(
            f"image: got {image.width}x{image.height} pixels, expected sides of more similar length, because the longer one "
            f"has at most {max(size)} pixels and the shorter one would have none. Cut the image into pieces."
        )
    else:
        fitted = ImageOps.pad(image, size, Image.Resampling.BICUBIC, PAD_COLOR)
    patch = config.patch_size
    pixels = np.asarray(fitted, dtype=np.uint8).reshape(grid.vit_h, patch, grid.vit_w, patch, 3)
    patches = pixels.transpose(0, 2, 4, 1, 3).reshape(grid.vit_h * grid.vit_w, 3 * patch * patch)
    return _PIXEL_VALUES[patches], grid


def _pixel_values() -> NDArray[np.float32]:
    """The normalised value of each of the 256 levels: float32 arithmetic, then bfloat16 to nearest, ties to even."""
    half = np.float32(0.5)
    values = (np.arange(256, dtype=np.float32) / np.float32(255) - half) / half
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)


_PIXEL_VALUES = _pixel_values()
