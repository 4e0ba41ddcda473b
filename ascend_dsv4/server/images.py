# SPDX-License-Identifier: Apache-2.0
"""Images of requests: fetched, decoded and encoded beside the event loop and the engine, a bounded number at a time.

At most `NUM_SLOTS` requests of each kind (data URLs; remote URLs, which may be slow) have their images read at once, one image
after the other, so that the memory they take does not grow with the number of clients. Fetching, decoding and the vision tower
have threads of their own: two decode, one runs the tower. The engine's thread never waits for an image.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.config.server_config import ServerConfig
from ascend_dsv4.config.vision_config import VisionConfig
from ascend_dsv4.errors import CapacityError, RequestError
from ascend_dsv4.runner.batch import PlacedRows
from ascend_dsv4.runner.vision import EncodedImage, VisionEncoder, place_images
from ascend_dsv4.server.dialog import Dialog, ImageUrl
from ascend_dsv4.server.errors import HttpError
from ascend_dsv4.server.metrics import Metrics
from ascend_dsv4.vision.decode import DEFAULT_LIMITS, ImageLimits, decode_image
from ascend_dsv4.vision.fetch import ImageSource
from ascend_dsv4.vision.layout import expand_placeholders
from ascend_dsv4.vision.preprocess import ImageGrid, preprocess

NUM_SLOTS: Final = 8
NUM_DECODERS: Final = 2
"""Decoding takes up to 16 bytes a pixel, 1 GB for the largest image."""
MAX_PROMPT_PIXELS: Final = 4 * DEFAULT_LIMITS.max_pixels
"""Of all images of a request together, as they were sent."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Pixels:
    """An image that is ready for the tower; `num_sent` pixels before it was resized."""

    patches: NDArray[np.float32]
    grid: ImageGrid
    num_sent: int


class ImageReader:
    """Reads images for one model. Everything runs on the event loop's thread, but for what its workers do."""

    def __init__(
        self, vision: VisionConfig, image_token_id: int, encoder: Callable[[], VisionEncoder], server: ServerConfig,
        metrics: Metrics, *, max_model_len: int, max_num_waiting: int | None,
    ) -> None:  # fmt: skip
        """
        encoder           the tower, loaded when first asked for
        max_model_len     tokens of the longest prompt
        max_num_waiting   requests that may wait for their images to be read; None for any number
        """
        self.source = ImageSource(
            allow_remote=server.allow_remote_images,
            allowed_hosts=server.image_hosts,
            max_bytes=server.max_image_bytes,
            timeout_s=server.image_timeout_s,
            allowed_networks=server.image_networks,
            allowed_ports=server.image_ports,
        )
        self._vision = vision
        self._image_token_id = image_token_id
        self._encoder = encoder
        self._server = server
        self._metrics = metrics
        self._max_model_len = max_model_len
        self.max_num_waiting = max_num_waiting
        self._slots = {is_remote: asyncio.Semaphore(NUM_SLOTS) for is_remote in (False, True)}
        self.num_open = 0
        """Requests whose images are being read, or wait for that."""
        self._fetchers = ThreadPoolExecutor(NUM_SLOTS, thread_name_prefix="image-fetch")
        self._decoders = ThreadPoolExecutor(NUM_DECODERS, thread_name_prefix="image-decode")
        self._tower = ThreadPoolExecutor(1, thread_name_prefix="vision-tower")

    async def place(self, dialog: Dialog) -> tuple[PlacedRows, ...]:
        """What stands in the place of a dialog's image tokens, of which it then has as many as the images take.

        Raises RequestError or HttpError for images that cannot be had, read or served, CapacityError if too many wait.
        """
        _, encoded = await self._read(dialog, self._encode)
        ids, placed = place_images(dialog.prompt_ids, encoded, self._image_token_id)
        dialog.prompt_ids = tuple(ids)
        return placed

    async def measure(self, dialog: Dialog) -> None:
        """Give a dialog as many image tokens as its images take, without running the tower. Raises as `place`."""
        grids, _ = await self._read(dialog, None)
        lengths = [grid.num_tokens for grid in grids]
        dialog.prompt_ids = tuple(expand_placeholders(dialog.prompt_ids, self._image_token_id, lengths)[0])

    def close(self) -> None:
        """Drop what has not begun."""
        for workers in (self._fetchers, self._decoders, self._tower):
            workers.shutdown(wait=False, cancel_futures=True)

    async def _read(
        self, dialog: Dialog, encode: Callable[[_Pixels], EncodedImage] | None
    ) -> tuple[list[ImageGrid], list[EncodedImage]]:
        """Grids of a dialog's images, and what the tower makes of them."""
        images = dialog.images
        self._check_count(len(images))
        if self.max_num_waiting is not None and self.num_open >= self.max_num_waiting + NUM_SLOTS:
            raise CapacityError(
                f"images: {self.num_open} requests wait for theirs to be read, expected at most {self.max_num_waiting} "
                "(max_num_waiting), because each one holds its images in memory. Try again later."
            )
        self.num_open += 1
        try:
            async with self._slots[any(map(_is_remote, images))]:
                return await self._read_each(dialog.prompt_ids, images, encode)
        finally:
            self.num_open -= 1

    async def _read_each(
        self, prompt_ids: Sequence[int], images: Sequence[ImageUrl], encode: Callable[[_Pixels], EncodedImage] | None
    ) -> tuple[list[ImageGrid], list[EncodedImage]]:
        grids: list[ImageGrid] = []
        encoded: list[EncodedImage] = []
        length, num_pixels, seconds = len(prompt_ids), 0, self.source.timeout_s
        for number, image in enumerate(images, 1):
            try:
                data, started = None, time.monotonic()
                if _is_remote(image):
                    load = partial(self.source.load, image.url, deadline=started + seconds)
                    data = await self._run(self._fetchers, load)
                    seconds -= time.monotonic() - started
                pixels = await self._run(self._decoders, partial(self._decode, image, data, MAX_PROMPT_PIXELS - num_pixels))
                num_pixels += pixels.num_sent
                length += pixels.grid.num_tokens - 1
                self._check_length(length, number)
            except (RequestError, HttpError) as error:
                self._metrics.image_refused()
                if isinstance(error, HttpError):
                    raise
                where = f"{image.path}, " if image.path else ""
                raise RequestError(f"{where}image {number} of {len(images)}: {str(error).removeprefix('image: ')}") from error
            grids.append(pixels.grid)
            if encode is not None:
                encoded.append(await self._run(self._tower, partial(encode, pixels)))
        return grids, encoded

    async def _run(self, workers: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(workers, work)

    def _decode(self, image: ImageUrl, data: bytes | None, max_pixels: int) -> _Pixels:
        """On a worker: patches of an image whose bytes are `data`, or in its data URL."""
        limits = ImageLimits(max_bytes=self.source.max_bytes, max_pixels=min(max_pixels, DEFAULT_LIMITS.max_pixels))
        pixels = decode_image(self.source.load(image.url) if data is None else data, limits)
        return _Pixels(*preprocess(pixels, self._vision), pixels.width * pixels.height)

    def _encode(self, pixels: _Pixels) -> EncodedImage:
        """On the tower's worker."""
        started = time.perf_counter()
        encoded = self._encoder().encode_patches(pixels.patches, pixels.grid)
        self._metrics.image_encoded(time.perf_counter() - started)
        return encoded

    def _check_count(self, count: int) -> None:
        limit = self._server.max_images_per_prompt
        if count > limit:
            self._metrics.image_refused()
            raise HttpError(
                400, f"images: got {count}, expected at most {limit}, the limit of this server (max_images_per_prompt). Send "
                "fewer.", code="too_many_images",
            )  # fmt: skip

    def _check_length(self, length: int, number: int) -> None:
        if length >= self._max_model_len:
            raise HttpError(
                400, f"the prompt has {length} tokens up to image {number}, but max_model_len={self._max_model_len}, and at "
                "least one more is wanted. Send fewer or smaller images, or less text.", code="context_length_exceeded",
            )  # fmt: skip


def _is_remote(image: ImageUrl) -> bool:
    return image.url[:5].lower() != "data:"
