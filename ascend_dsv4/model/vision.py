# SPDX-License-Identifier: Apache-2.0
"""The vision tower of DeepSeek V4.1 as plain functions, in the form of decoder.py, for one image per call.

    streams = patch_embed(patches)                              [num_patches, hidden_size of the tower]
    per block:  streams = vision_block(streams)
    features = norm(streams)
    rows = w2 · gelu(w1 · merged(features))                     [num_blocks, hidden_size of the text model]

`batch` holds the tables of the image's grid, made by `vision_tables`; the graphs are the same for every grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.config.vision_config import VisionConfig
from ascend_dsv4.model.vision_weights import NUM_CHANNELS, AlignerWeights, VisionTowerWeights
from ascend_dsv4.model.weights import Tensor
from ascend_dsv4.ops.spec import TensorType

NORM_EPS = 1e-6
"""Of every norm in the tower, whatever the text model's is."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class VisionForwardConfig:
    """A vision configuration with the compute dtype of a run. Read by model functions only."""

    model: VisionConfig
    dtype: str


def vision_tower(
    ops: Any, cfg: VisionForwardConfig, w: VisionTowerWeights, streams: Tensor, carry: Tensors, batch: Tensors, caches: Tensors
) -> tuple[Tensor, Tensors]:
    """Features of the patches of one image.

    streams  [num_patches, 3 · patch_size²] float32 in reading order; batch["cos"], batch["sin"] are their angles
    returns  [num_patches, hidden_size of the tower]
    """
    x = ops.linear_bias(streams, *w.patch_embed, out_dtype=cfg.dtype)
    for block in w.blocks:
        x = ops.vision_block(x, *block, batch["cos"], batch["sin"], num_heads=cfg.model.num_attention_heads, eps=NORM_EPS)
    return ops.rms_norm(x, w.norm, eps=NORM_EPS), {}


def aligner(
    ops: Any, cfg: VisionForwardConfig, w: AlignerWeights, streams: Tensor, carry: Tensors, batch: Tensors, caches: Tensors
) -> tuple[Tensor, Tensors]:
    """Embeddings of the image tokens of one image, in reading order.

    streams  features [num_patches, hidden_size of the tower]; batch["patch_ids"] says which of them a token covers
    returns  [num_blocks, hidden_size of the text model]
    """
    merged = ops.merge_patches(streams, batch["patch_ids"])
    hidden = ops.gelu(ops.linear_bias(merged, *w.w1, out_dtype=cfg.dtype))
    return ops.linear_bias(hidden, *w.w2, out_dtype=cfg.dtype), {}


def vision_tables(config: VisionConfig, vit_h: int, vit_w: int) -> dict[str, NDArray[Any]]:
    """What the functions above read from `batch` for an image of vit_h x vit_w patches.

    cos, sin   float32 [num_patches, head_dim / 2]: the angles of a patch are its row times each frequency, then its column
               times each; frequency i is rope_theta^(-i / n), i < n = head_dim / 4
    patch_ids  int32 [num_blocks, downsample_ratio²]: the patches of each square block in reading order, blocks in reading
               order; −1 where a block reaches past the right or lower edge
    """
    head_dim, ratio = config.hidden_size // config.num_attention_heads, config.downsample_ratio
    frequencies = config.rope_theta ** -(np.arange(0, head_dim // 2, 2, dtype=np.float32) / np.float32(head_dim // 2))
    rows, columns = np.divmod(np.arange(vit_h * vit_w), vit_w)
    angles = np.concatenate([np.outer(at.astype(np.float32), frequencies) for at in (rows, columns)], axis=1, dtype=np.float32)
    llm_h, llm_w = -(-vit_h // ratio), -(-vit_w // ratio)
    ids = np.full((llm_h * ratio, llm_w * ratio), -1, dtype=np.int32)
    ids[:vit_h, :vit_w] = np.arange(vit_h * vit_w, dtype=np.int32).reshape(vit_h, vit_w)
    blocks = ids.reshape(llm_h, ratio, llm_w, ratio).transpose(0, 2, 1, 3).reshape(llm_h * llm_w, ratio * ratio)
    return {"cos": np.cos(angles), "sin": np.sin(angles), "patch_ids": np.ascontiguousarray(blocks)}


def tower_inputs(config: VisionConfig) -> tuple[TensorType, dict[str, TensorType]]:
    """Types of `streams` and `batch` of `vision_tower`."""
    half = config.hidden_size // config.num_attention_heads // 2
    table = TensorType(("num_patches", half), "float32")
    return TensorType(("num_patches", NUM_CHANNELS * config.patch_size**2), "float32"), {"cos": table, "sin": table}


def aligner_inputs(cfg: VisionForwardConfig) -> tuple[TensorType, dict[str, TensorType]]:
    """Types of `streams` and `batch` of `aligner`."""
    ids = TensorType(("num_blocks", cfg.model.downsample_ratio**2), "int32")
    return TensorType(("num_patches", cfg.model.hidden_size), cfg.dtype), {"patch_ids": ids}
