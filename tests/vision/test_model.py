# SPDX-License-Identifier: Apache-2.0
"""The vision tower and aligner against the released model's outputs, and their tensors against the release."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ascend_dsv4.backend.cpu import CpuBackend
from ascend_dsv4.config.vision_config import VisionConfig
from ascend_dsv4.graph.trace import trace
from ascend_dsv4.graph.tree import leaves, map_leaves
from ascend_dsv4.model.checkpoint import Checkpoint
from ascend_dsv4.model.loader import WeightLoader
from ascend_dsv4.model.vision import (
    VisionForwardConfig,
    aligner,
    aligner_inputs,
    tower_inputs,
    vision_tables,
    vision_tower,
)
from ascend_dsv4.model.vision_weights import VisionWeights, vision_tensors, vision_weights
from ascend_dsv4.model.weights import is_parameter
from ascend_dsv4.vision.preprocess import preprocess
from tests.vision.conftest import RELEASED

ATOL = 1e-4
IMAGES = [0, 1]


class Vision:
    """Tower and aligner of a checkpoint, compiled once for images of any grid."""

    def __init__(self, folder: Path, config: VisionConfig, hidden_size: int, dtype: str, weight_format: Any) -> None:
        self.config = config
        cfg, backend = VisionForwardConfig(config, dtype), CpuBackend()
        params = vision_weights(config, hidden_size, weight_format)
        weights: VisionWeights = WeightLoader(Checkpoint.open(folder), backend.parameter).load(params, lambda _: None)
        self.delimiters = (weights.image_start, weights.image_end, weights.image_newline)
        self.plans = []
        parts = [
            ("vision_tower", vision_tower, params.tower, weights.tower, tower_inputs(config)),
            ("aligner", aligner, params.aligner, weights.aligner, aligner_inputs(cfg)),
        ]
        for name, function, types, tensors, (streams, batch) in parts:
            w = map_leaves(lambda _, leaf: leaf.type, types, is_parameter)
            graph = trace(name, function, cfg, w=w, streams=streams, carry={}, batch=batch, caches={})
            self.plans.append(backend.compile(graph, leaves(tensors), {}))

    def __call__(self, patches: np.ndarray, vit_h: int, vit_w: int) -> tuple[Tensor, Tensor]:
        """Features of the patches, embeddings of the image tokens."""
        batch = {name: torch.from_numpy(table) for name, table in vision_tables(self.config, vit_h, vit_w).items()}
        features, _ = self.plans[0](torch.from_numpy(patches), {}, batch)
        assert features is not None
        rows, _ = self.plans[1](features, {}, batch)
        assert rows is not None
        return features, rows


@pytest.fixture(scope="module")
def vision(full_golden_v41: Path, tiny: VisionConfig, tiny_json: dict[str, Any]) -> Vision:
    return Vision(full_golden_v41 / "bf16", tiny, tiny_json["text_config"]["hidden_size"], "float32", "released")


@pytest.mark.parametrize("k", IMAGES)
def test_golden(k: int, vision: Vision, full_golden_v41: Path, golden: dict[str, Tensor]) -> None:
    """From the image file to the rows that enter the text model, in float32."""
    patches, grid = preprocess(Image.open(full_golden_v41 / "images" / f"img{k}.png"), vision.config)
    features, rows = vision(patches, grid.vit_h, grid.vit_w)
    for name, found in (("vision_out", features), ("aligner_out", rows)):
        expected = golden[f"img{k}.{name}"]
        assert found.shape == expected.shape and found.dtype == torch.float32
        error = float((found - expected).abs().max())
        print(f"img{k}.{name}: largest error {error:.1e} of {float(expected.abs().max()):.2f}")
        assert error < ATOL


@pytest.mark.parametrize("weight_format", ["fp32", "bf16"])
def test_weight_formats_hold_the_same_numbers(
    weight_format: str, vision: Vision, full_golden_v41: Path, tiny: VisionConfig, golden: dict[str, Tensor]
) -> None:
    other = Vision(full_golden_v41 / "fp8_fp4", tiny, 128, "float32", weight_format)
    patches = golden["img0.patches"].float().reshape(40, -1).numpy()
    for mine, expected in zip(other(patches, 5, 8), vision(patches, 5, 8), strict=True):
        assert torch.equal(mine, expected)


def test_bfloat16_stays_near_float32(full_golden_v41: Path, tiny: VisionConfig, golden: dict[str, Tensor]) -> None:
    patches = golden["img0.patches"].float().reshape(40, -1).numpy()
    _, rows = Vision(full_golden_v41 / "bf16", tiny, 128, "bfloat16", "released")(patches, 5, 8)
    assert rows.dtype == torch.bfloat16
    delta = (rows.float() - golden["img0.aligner_out"]).square().mean().sqrt() / golden[
        "img0.aligner_out"
    ].square().mean().sqrt()
    assert 1e-4 < float(delta) < 0.03


def test_delimiters(vision: Vision) -> None:
    for vector in vision.delimiters:
        assert vector.shape == (128,) and float(vector.float().abs().max()) > 0
    assert not torch.equal(vision.delimiters[0], vision.delimiters[1])


def test_tables_of_a_small_grid(tiny: VisionConfig) -> None:
    """By hand, for two rows of five patches: heads of 16 channels have 4 frequencies per axis, 1, 0.1, 0.01, 0.001."""
    tables = vision_tables(tiny, 2, 5)
    assert tables["patch_ids"].tolist() == [[0, 1, 2, 5, 6, 7, -1, -1, -1], [3, 4, -1, 8, 9, -1, -1, -1, -1]]
    angles = [1, 0.1, 0.01, 0.001, 3, 0.3, 0.03, 0.003]  # row 1, column 3
    np.testing.assert_allclose(tables["cos"][8], np.cos(angles), rtol=1e-6)
    np.testing.assert_allclose(tables["sin"][8], np.sin(angles), rtol=1e-6)
    assert {table.dtype.name for table in tables.values()} == {"float32", "int32"}
    assert all(table.flags.c_contiguous for table in tables.values())


def test_a_larger_image_moves_the_smaller_one_not_at_all(vision: Vision, golden: dict[str, Tensor]) -> None:
    """Calls are images: another image in between leaves no trace."""
    small = golden["img0.patches"].float().reshape(40, -1).numpy()
    before = vision(small, 5, 8)
    vision(np.full((81, 588), 3.0, dtype=np.float32), 9, 9)
    for first, again in zip(before, vision(small, 5, 8), strict=True):
        assert torch.equal(first, again)


def test_the_grid_matters(vision: Vision, golden: dict[str, Tensor]) -> None:
    """The same patches as five rows of eight and eight rows of five are different images."""
    patches = golden["img0.patches"].float().reshape(40, -1).numpy()
    assert float((vision(patches, 5, 8)[0] - vision(patches, 8, 5)[0]).abs().max()) > 0.01


def test_released_tensors() -> None:
    """266 tensors and 0.90 GiB, as the release has; some shapes of its table."""
    specs = {spec.name: spec for spec in vision_tensors(RELEASED, 5120)}
    assert len(specs) == 266
    assert sum(spec.num_bytes for spec in specs.values()) == pytest.approx(0.90 * 2**30, rel=0.006)
    assert {spec.dtype for spec in specs.values()} == {"BF16"}
    table = {
        "vision.patch_embed.proj.weight": (1024, 588), "vision.blocks.31.attn.wqkv.weight": (3072, 1024),
        "vision.blocks.0.attn.wqkv.bias": (3072,), "vision.blocks.7.mlp.w1.weight": (5632, 1024),
        "vision.blocks.7.mlp.w2.weight": (1024, 2816), "vision.norm.weight": (1024,), "aligner.w1.weight": (5120, 9216),
        "aligner.w2.bias": (5120,), "image_newline": (5120,),
    }  # fmt: skip
    assert {name: specs[name].shape for name in table} == table


def test_tiny_tensors_are_those_of_the_checkpoint(full_golden_v41: Path, tiny: VisionConfig) -> None:
    checkpoint = Checkpoint.open(full_golden_v41 / "bf16")
    stored = {name for name in checkpoint.names() if name.startswith(("vision.", "aligner.", "image_"))}
    specs = list(vision_tensors(tiny, 128))
    assert sorted(spec.name for spec in specs) == sorted(stored)
    for spec in specs:
        assert (checkpoint.entry(spec.name).dtype, checkpoint.entry(spec.name).shape) == (spec.dtype, spec.shape)


def test_every_tensor_has_a_parameter() -> None:
    params = leaves(vision_weights(replace(RELEASED, num_hidden_layers=3), 5120, "bf16"), is_parameter)
    specs = {spec.name: spec.shape for spec in vision_tensors(replace(RELEASED, num_hidden_layers=3), 5120)}
    assert {param.names[0]: param.type.shape for param in params.values()} == specs
    norms = {param.names[0] for param in params.values() if param.type.dtype == "float32"}
    assert norms == {name for name in specs if "norm" in name}
