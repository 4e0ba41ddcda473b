# SPDX-License-Identifier: Apache-2.0
"""Where images sit in a prompt: START, rows of IMAGE each closed by NEWLINE, END, in place of one placeholder token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.errors import RequestError
from ascend_dsv4.vision.preprocess import ImageGrid

START, IMAGE, NEWLINE, END = 0, 1, 2, 3
"""Token types of the positions of an image."""


def image_token_types(grid: ImageGrid) -> NDArray[np.int8]:
    """Types of the positions of one image, int8 [num_tokens]."""
    row = [IMAGE] * grid.llm_w + [NEWLINE]
    return np.array([START, *row * grid.llm_h, END], dtype=np.int8)


def expand_placeholders(
    token_ids: Sequence[int], image_token_id: int, lengths: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Give every placeholder token as many positions as its image takes; images come in prompt order.

    token_ids   where they hold more image tokens than there are images, an image may have its full number already
    lengths     positions of each image
    returns     ids, in which every position of an image carries `image_token_id`; the position at which each image starts
    raises      RequestError if image tokens and images do not match
    """
    token_ids = list(token_ids)
    # Without this, placeholders side by side could be as many as the first of their images takes.
    is_folded = token_ids.count(image_token_id) == len(lengths)
    ids: list[int] = []
    starts: list[int] = []
    at = 0
    while at < len(token_ids):
        if token_ids[at] != image_token_id or len(starts) == len(lengths):
            ids.append(token_ids[at])
            at += 1
            continue
        length = lengths[len(starts)]
        span = [image_token_id] * length
        at += length if not is_folded and token_ids[at : at + length] == span else 1
        starts.append(len(ids))
        ids += span
    if len(starts) < len(lengths) or ids.count(image_token_id) != sum(lengths):
        raise RequestError(
            f"images: got {len(lengths)}, and {token_ids.count(image_token_id)} image tokens (id {image_token_id}) in the "
            "prompt, expected one for each image, because it says where the image stands. Send as many of both."
        )
    return ids, starts
