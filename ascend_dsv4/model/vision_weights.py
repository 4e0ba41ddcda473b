# SPDX-License-Identifier: Apache-2.0
"""Weights of the vision tower and the aligner: a tree of `Param` as in `weights.py`, and what a checkpoint stores of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ascend_dsv4.config.vision_config import VisionConfig
from ascend_dsv4.model.inventory import TensorSpec
from ascend_dsv4.model.weights import DENSE_DTYPE, Param, Tensor, WeightFormat
from ascend_dsv4.ops.spec import TensorType

NUM_CHANNELS = 3


class BiasedMatrix(NamedTuple):
    """Arguments of `ops.linear_bias`."""

    weight: Tensor
    bias: Tensor


class VisionBlockWeights(NamedTuple):
    """Arguments of `ops.vision_block`."""

    norm1: Tensor
    wqkv: Tensor
    bqkv: Tensor
    wo: Tensor
    bo: Tensor
    norm2: Tensor
    w1: Tensor
    w2: Tensor


@dataclass(frozen=True, slots=True)
class VisionTowerWeights:
    patch_embed: BiasedMatrix
    blocks: tuple[VisionBlockWeights, ...]
    norm: Tensor


@dataclass(frozen=True, slots=True)
class AlignerWeights:
    w1: BiasedMatrix
    w2: BiasedMatrix


@dataclass(frozen=True, slots=True)
class VisionWeights:
    tower: VisionTowerWeights
    aligner: AlignerWeights
    image_start: Tensor
    """[hidden_size] of the text model, as the two below: the embeddings of a span's delimiters."""
    image_end: Tensor
    image_newline: Tensor


def vision_tensors(config: VisionConfig, hidden_size: int) -> Iterator[TensorSpec]:
    """Every stored tensor of tower, aligner and delimiters, all in BF16. `hidden_size` is the text model's."""
    dim, inter = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "vision.patch_embed.proj.weight": (dim, NUM_CHANNELS * config.patch_size**2),
        "vision.patch_embed.proj.bias": (dim,),
    }
    for i in range(config.num_hidden_layers):
        block = f"vision.blocks.{i}."
        shapes |= {
            f"{block}norm1.weight": (dim,),
            f"{block}attn.wqkv.weight": (3 * dim, dim),
            f"{block}attn.wqkv.bias": (3 * dim,),
            f"{block}attn.wo.weight": (dim, dim),
            f"{block}attn.wo.bias": (dim,),
            f"{block}norm2.weight": (dim,),
            f"{block}mlp.w1.weight": (2 * inter, dim),
            f"{block}mlp.w2.weight": (dim, inter),
        }
    shapes |= {
        "vision.norm.weight": (dim,),
        "aligner.w1.weight": (hidden_size, dim * config.downsample_ratio**2),
        "aligner.w1.bias": (hidden_size,),
        "aligner.w2.weight": (hidden_size, hidden_size),
        "aligner.w2.bias": (hidden_size,),
        "image_start": (hidden_size,),
        "image_end": (hidden_size,),
        "image_newline": (hidden_size,),
    }
    for name, shape in shapes.items():
        yield TensorSpec(name, "BF16", shape)


def vision_weights(config: VisionConfig, hidden_size: int, weight_format: WeightFormat) -> VisionWeights:
    """The tree of parameters. Norms are float32 in every format, as the release makes them while loading."""
    shapes = {spec.name: spec.shape for spec in vision_tensors(config, hidden_size)}

    def param(name: str, dtype: str = DENSE_DTYPE[weight_format]) -> Param:
        return Param(TensorType(shapes[name], dtype), (name,), (1, 1))

    def biased(prefix: str) -> BiasedMatrix:
        return BiasedMatrix(param(f"{prefix}.weight"), param(f"{prefix}.bias"))

    def block(prefix: str) -> VisionBlockWeights:
        return VisionBlockWeights(
            param(f"{prefix}.norm1.weight", "float32"),
            *biased(f"{prefix}.attn.wqkv"),
            *biased(f"{prefix}.attn.wo"),
            param(f"{prefix}.norm2.weight", "float32"),
            param(f"{prefix}.mlp.w1.weight"),
            param(f"{prefix}.mlp.w2.weight"),
        )

    return VisionWeights(
        tower=VisionTowerWeights(
            biased("vision.patch_embed.proj"),
            tuple(block(f"vision.blocks.{i}") for i in range(config.num_hidden_layers)),
            param("vision.norm.weight", "float32"),
        ),
        aligner=AlignerWeights(biased("aligner.w1"), biased("aligner.w2")),
        image_start=param("image_start"),
        image_end=param("image_end"),
        image_newline=param("image_newline"),
    )
