# SPDX-License-Identifier: Apache-2.0
"""Where images sit in a prompt: START, rows of IMAGE each closed by NEWLINE, END, in place of one placeholder token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.errors import RequestError
from ascend_dsv4.vision.preprocess import ImageGrid

TEXT, START, IMAGE, NEWLINE, END = -1, 0, 1, 2, 3
"""Token types. A position that is not TEXT belongs to an image span."""


def image_token_types(grid: ImageGrid) -> NDArray[np.int8]:
    """Types of the positions of one image, int8 [num_tokens]."""
    row = [IMAGE] * grid.llm_w + [NEWLINE]
    return np.array([START, *row * grid.llm_h, END], dtype=np.int8)


def expand_placeholders(
    token_ids: Sequence[int], image_token_id: int, grids: Sequence[ImageGrid]
) -> tuple[NDArray[np.int32], NDArray[np.int8], NDArray[np.int32]]:
    """Give every placeholder token as many positions as its image takes; images come in prompt order.

    returns  ids int32 [n], in which every position of a span carries `image_token_id`; token types int8 [n]; the position
             at which each image starts, int32 [num_images]
    raises   RequestError if there are not as many placeholders as images
    """
    tokens = np.asarray(token_ids, dtype=np.int32)
    places = np.flatnonzero(tokens == image_token_id)
    if len(places) != len(grids):
        raise RequestError(
            f"prompt: got {len(places)} image placeholders (token {image_token_id}) and {len(grids)} images, expected as many "
            "of one as of the other, because each placeholder stands for one image. Send every image with its own placeholder."
        )
    spans = [image_token_types(grid) for grid in grids]
    lengths = np.ones(len(tokens), dtype=np.int64)
    lengths[places] = [len(span) for span in spans]
    starts = (np.cumsum(lengths) - lengths)[places].astype(np.int32)
    types = np.full(int(lengths.sum()), TEXT, dtype=np.int8)
    for start, span in zip(starts, spans, strict=True):
        types[start : start + len(span)] = span
    return np.repeat(tokens, lengths), types, starts
