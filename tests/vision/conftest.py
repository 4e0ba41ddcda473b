# SPDX-License-Identifier: Apache-2.0
"""The released and the tiny vision configuration, and the goldens of the tiny one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ascend_dsv4.config.vision_config import VisionConfig

RELEASED = VisionConfig(
    num_hidden_layers=32,
    hidden_size=1024,
    num_attention_heads=16,
    intermediate_size=2816,
    patch_size=14,
    rope_theta=10000,
    downsample_ratio=3,
    max_image_tokens=1024,
    min_pixels=295936,
    max_wh_ratio=None,
)


@pytest.fixture(scope="session")
def tiny_json(golden_v41_parts: Path) -> dict[str, Any]:
    """config.json of the tiny model."""
    return json.loads((golden_v41_parts / "fp8_fp4" / "config.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def tiny(tiny_json: dict[str, Any]) -> VisionConfig:
    """The vision configuration that the goldens were made with."""
    fields = {name: value for name, value in tiny_json["vision_config"].items() if name != "model_type"}
    return VisionConfig(**fields)


@pytest.fixture(scope="session")
def golden(golden_v41_parts: Path) -> dict[str, torch.Tensor]:
    """vision.safetensors."""
    return load_file(golden_v41_parts / "vision.safetensors")
