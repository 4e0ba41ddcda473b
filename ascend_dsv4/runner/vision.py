# SPDX-License-Identifier: Apache-2.0
"""Images to the rows that stand in the place of their tokens: patches, tower, aligner, delimiters."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ascend_dsv4.backend.base import Backend
from ascend_dsv4.config.vision_config import VisionConfig
from ascend_dsv4.graph.ir import Graph
from ascend_dsv4.graph.trace import trace
from ascend_dsv4.graph.tree import leaves, map_leaves
from ascend_dsv4.model.vision import VisionForwardConfig, aligner, aligner_inputs, tower_inputs, vision_tables, vision_tower
from ascend_dsv4.model.vision_weights import VisionWeights
from ascend_dsv4.model.weights import is_parameter
from ascend_dsv4.runner.batch import PlacedRows
from ascend_dsv4.vision.layout import END, IMAGE, NEWLINE, START, expand_placeholders, image_token_types
from ascend_dsv4.vision.preprocess import ImageGrid, preprocess

CACHE_BYTES: Final = 1 << 28
"""Of encoded images that are kept in case they come again, as in the next turn of a conversation."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """What an image is to the text model: float32 [num_tokens, hidden_size], delimiters included."""

    rows: NDArray[np.float32]

    @property
    def num_tokens(self) -> int:
        """Positions the image takes in a prompt."""
        return len(self.rows)


def vision_graphs(config: VisionConfig, dtype: str, params: VisionWeights) -> tuple[Graph, Graph]:
    """Tower and aligner; the same for every size of image. Needs no weights."""
    cfg = VisionForwardConfig(config, dtype)

    def graph(name: str, function: Any, tree: Any, inputs: Any) -> Graph:
        types = map_leaves(lambda _, leaf: leaf.type, tree, is_parameter)
        return trace(name, function, cfg, w=types, streams=inputs[0], carry={}, batch=inputs[1], caches={})

    return (
        graph("vision_tower", vision_tower, params.tower, tower_inputs(config)),
        graph("aligner", aligner, params.aligner, aligner_inputs(cfg)),
    )


def place_images(
    token_ids: Sequence[int], images: Sequence[EncodedImage], image_token_id: int
) -> tuple[list[int], tuple[PlacedRows, ...]]:
    """A prompt with as many image tokens as its images take, and where each image stands.

    raises  RequestError if image tokens and images do not match; see `expand_placeholders`
    """
    ids, starts = expand_placeholders(token_ids, image_token_id, [image.num_tokens for image in images])
    return ids, tuple(PlacedRows(start, image.rows) for start, image in zip(starts, images, strict=True))


class VisionEncoder:
    """Tower and aligner over weights. `weights` is the parameter tree with tensors as leaves."""

    def __init__(self, config: VisionConfig, graphs: tuple[Graph, Graph], weights: VisionWeights, backend: Backend) -> None:
        self._config, self._backend = config, backend
        self._tower = backend.compile(graphs[0], leaves(weights.tower), {})
        self._aligner = backend.compile(graphs[1], leaves(weights.aligner), {})
        self._delimiters = {
            kind: backend.to_host(row).astype(np.float32)
            for kind, row in ((START, weights.image_start), (NEWLINE, weights.image_newline), (END, weights.image_end))
        }
        self._kept: OrderedDict[bytes, EncodedImage] = OrderedDict()

    def encode(self, image: Image.Image) -> EncodedImage:
        """Raises RequestError for a shape that no plan fits. An image that was seen lately is not computed again."""
        return self.encode_patches(*preprocess(image, self._config))

    def encode_patches(self, patches: NDArray[np.float32], grid: ImageGrid) -> EncodedImage:
        """`encode` of what `preprocess` returned. One thread at a time, which need not be the one that runs the text model."""
        key = hashlib.sha256(patches.tobytes() + bytes(str(grid), "ascii")).digest()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        tables = vision_tables(self._config, grid.vit_h, grid.vit_w)
        batch = {name: self._backend.to_device(table) for name, table in tables.items()}
        features, _ = self._tower(self._backend.to_device(patches), {}, batch)
        found = self._backend.to_host(self._aligner(features, {}, batch)[0]).astype(np.float32)
        types = image_token_types(grid)
        rows = np.empty((len(types), found.shape[1]), np.float32)
        rows[types == IMAGE] = found
        for kind, row in self._delimiters.items():
            rows[types == kind] = row
        self._kept[key] = EncodedImage(rows)
        while len(self._kept) > 1 and sum(item.rows.nbytes for item in self._kept.values()) > CACHE_BYTES:
            self._kept.popitem(last=False)
        return self._kept[key]
